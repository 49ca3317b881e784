"""What of a bundle decides the result: the content that a pin is a digest of."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from bundles.errors import PinError
from bundles.spec.bundle import Bundle
from bundles.spec.source import WeightSource
from bundles.spec.values import plain_value

# What people read, and what says nothing of the model itself.
_SAID = frozenset(
    (
        *("description", "homepage", "languages", "license", "modality", "num_parameters", "paper"),
        *("task", "training_data"),
    )
)


def canonical(bundle: Bundle) -> dict[str, Any]:
    """Return everything of a bundle that decides what ``get_model`` builds and freezes, as JSON types.

    Its name, origin and descriptions are not in it, and of a file that has a digest neither is the address.

    Raises:
        PinError: its builder is a Python function, which nothing identifies.

    >>> import bundles
    >>> canonical(bundles.CREPE_TINY)["architecture"]
    {'model': 'tiny'}
    """
    if not isinstance(bundle.builder, str):
        raise PinError(
            f"{bundle.name} is built by a Python function, which no pin can identify: pin a bundle whose "
            f"builder is one of the library's own."
        )
    return {
        "architecture": plain_value(bundle.architecture),
        "assets": {name: _file(source) for name, source in sorted(bundle.assets.items())},
        "builder": bundle.builder,
        "default_mode": str(bundle.default_mode),
        "default_policy": repr(bundle.default_policy),
        "head_slot": bundle.head_slot,
        "keys": {
            "drop_rows": plain_value(bundle.keys.drop_rows),
            "ignore": list(bundle.keys.ignore),
            "rename": list(bundle.keys.rename.items()),
            "strip": bundle.keys.strip,
        },
        "layers": list(plain_value(bundle.layers).items()),
        "metadata": {k: plain_value(v) for k, v in sorted(bundle.metadata.items()) if k not in _SAID},
        "num_features": bundle.num_features,
        "prefix": bundle.prefix,
        "weights": None if bundle.weights is None else _file(bundle.weights),
    }


def card_digest(bundle: Bundle) -> str:
    """Return ``sha256:`` and 64 hex digits over :func:`canonical`, addresses and digests of files left out.

    It says whether the card is the same; which bytes it meant is said file by file.

    Raises:
        PinError: its builder is a Python function, or it holds what is no text, number or list.
    """
    content = canonical(bundle)
    content["weights"] = bundle.weights is not None
    content["assets"] = sorted(bundle.assets)
    return digest_of(content)


def digest_of(content: Any) -> str:
    """Return ``sha256:`` and 64 hex digits over JSON types, whatever the order of keys.

    Raises:
        PinError: there is something else in it.
    """
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PinError(
            f"What JSON cannot hold cannot be pinned ({error}): use text, numbers and lists."
        ) from (error)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _file(source: WeightSource) -> Any:
    """A file by its bytes where they are known, else by its address."""
    if source.sha256 is None:
        return {"uri": source.uri}
    shards = {name: facts.get("sha256") for name, facts in sorted(source.shards.items())}
    return {"sha256": source.sha256, **({"shards": shards} if shards else {})}
