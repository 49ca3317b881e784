"""What a bundle offers beside its model, by kind: a closed table of names, and where each is found.

A card says ``companions = "ctc"`` and thereby which methods its bundle has. Methods of ours are
functions that take the bundle first; anything else is an interface class of the upstream library.
"""

from __future__ import annotations

# What a card of each kind must hold; the companions themselves check what each of them needs besides.
NEEDS: dict[str, tuple[str, ...]] = {
    "alignment": ("labels",),
    "ctc": ("labels",),
    "speech_synthesis": ("text_unit", "vocoder"),
    "text": ("tokenizer", "max_tokens"),
    "transducer": ("blank",),
    "vision": (),
}

COMPANIONS: dict[str, dict[str, str]] = {
    "alignment": {
        "get_labels": "bundles.companions.alignment:get_labels",
        "get_dict": "bundles.companions.alignment:get_dict",
        "get_tokenizer": "bundles.companions.alignment:get_tokenizer",
        "get_aligner": "bundles.companions.alignment:get_aligner",
        "Tokenizer": "torchaudio.pipelines:Wav2Vec2FABundle.Tokenizer",
        "Aligner": "torchaudio.pipelines:Wav2Vec2FABundle.Aligner",
    },
    "ctc": {"get_labels": "bundles.companions.ctc:get_labels"},
    "transducer": {
        "get_decoder": "bundles.companions.transducer:get_decoder",
        "get_feature_extractor": "bundles.companions.transducer:get_feature_extractor",
        "get_streaming_feature_extractor": "bundles.companions.transducer:get_streaming_feature_extractor",
        "get_token_processor": "bundles.companions.transducer:get_token_processor",
        "FeatureExtractor": "torchaudio.pipelines:RNNTBundle.FeatureExtractor",
        "TokenProcessor": "torchaudio.pipelines:RNNTBundle.TokenProcessor",
    },
    "speech_synthesis": {
        "get_text_processor": "bundles.companions.speech_synthesis:get_text_processor",
        "get_tacotron2": "bundles.companions.speech_synthesis:get_tacotron2",
        "get_vocoder": "bundles.companions.speech_synthesis:get_vocoder",
        "TextProcessor": "torchaudio.pipelines:Tacotron2TTSBundle.TextProcessor",
        "Vocoder": "torchaudio.pipelines:Tacotron2TTSBundle.Vocoder",
    },
    "text": {"transform": "bundles.companions.text:transform"},
    "vision": {
        "get_labels": "bundles.companions.vision:get_labels",
        "transforms": "bundles.companions.vision:transforms",
    },
}
