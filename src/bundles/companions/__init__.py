"""What bundles offer beside their models: labels, tokenizers, decoders, vocoders.

Each function takes the bundle first and is a method of the bundles of its kind; the table that says which
is in ``spec/companions.py``. Names, arguments and values are those of ``torchaudio.pipelines``.
"""
