"""Stored features: shards of a dataset's windows, a manifest that is written last, and what reads them.

::

    OUT/<16 digits of the key>/
      store.json                             facts, shards with their digests, what could not be read
      00000-<16 digits>.safetensors          the first window of the dataset
      00001-<16 digits>.safetensors
"""
