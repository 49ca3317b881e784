"""Heads: what people attach to encoders of speech and text.

Each takes the size of the encoder's features first, so any of them fits ``get_model(head=...)``::

    bundle.get_model(freeze=True, head=lambda dim: bundles.heads.MeanPoolClassifier(dim, 10))

A head of one's own is treated alike; what it may ask of the encoder is in
:mod:`bundles.heads.protocol`.
"""

from bundles.heads.classifiers import AttentiveStatisticsClassifier, MeanPoolClassifier
from bundles.heads.ctc import CTCHead
from bundles.heads.layers import WeightedLayers
from bundles.heads.pooling import AttentiveStatisticsPool, MeanPool
from bundles.heads.text import TextClassifier

__all__ = [
    "AttentiveStatisticsClassifier",
    "AttentiveStatisticsPool",
    "CTCHead",
    "MeanPool",
    "MeanPoolClassifier",
    "TextClassifier",
    "WeightedLayers",
]
