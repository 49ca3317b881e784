"""What stored features are of: everything that decides their values, as plain data with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bundles.spec.values import FrozenDict, plain_value

OUTPUT = "output"  # the layer that stands for what the encoder returns


@dataclass(frozen=True)
class FeatureFacts:
    """Everything but the inputs that decides what features are.

    Args:
        model: the one-line pin of a bundle; of any other module ``"state:"`` and the digest of the values
            that its frozen prefix computes with.
        plan: ``sha256:`` digest of the freeze plan, which tells the mode, too; ``None`` where nothing is.
        layers: what is stored, in the order of the model: names of layer groups, as ``"block.6"``, or
            ``"output"`` for what the encoder returns.
        dtype: of the stored numbers, as ``"float16"``.
        preprocessing: what becomes of an input before the model sees it, as
            ``{"kind": "waveform", "sample_rate": 16000}``.

    >>> facts = FeatureFacts("state:00", None, ("output",), "float16", {"kind": "waveform"})
    >>> facts.key[:12], list(facts.differences(FeatureFacts("state:00", None, ("output",), "float32")))
    ('05e5d3f75e3a', ["dtype: 'float16' and 'float32'", "preprocessing: {'kind': 'waveform'} and {}"])
    """

    model: str
    plan: str | None
    layers: tuple[str, ...]
    dtype: str
    preprocessing: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "preprocessing", FrozenDict(self.preprocessing))

    @property
    def key(self) -> str:
        """64 hex digits over all of it."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "layers": list(self.layers), "preprocessing": plain_value(self.preprocessing)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureFacts:
        """Read what :meth:`to_dict` gave."""
        return cls(**{**data, "layers": tuple(data["layers"])})

    def differences(self, other: FeatureFacts) -> Iterator[str]:
        """Yield a line for each part in which two differ."""
        ours, theirs = self.to_dict(), other.to_dict()
        yield from (f"{key}: {ours[key]!r} and {theirs[key]!r}" for key in ours if ours[key] != theirs[key])
