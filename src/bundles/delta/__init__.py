"""Delta checkpoints: what a training changed, beside a pin of what it started from."""

from bundles.delta.diff import TensorDiff, diff
from bundles.delta.format import Header, read_delta
from bundles.delta.load import load_delta
from bundles.delta.merge import merge
from bundles.delta.save import save_delta

__all__ = ["Header", "TensorDiff", "diff", "load_delta", "merge", "read_delta", "save_delta"]
