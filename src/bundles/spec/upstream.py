"""Spellings of upstream libraries that are still understood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundles.errors import BuildArgumentError, warn
from bundles.spec.values import shown

# What each entry of torchaudio's dl_kwargs comes to here.
_DL_KWARGS = {
    "progress": "False hides the progress bar, as here",
    "check_hash": "digests are always checked",
    "hash_prefix": "digests are always checked",
    "weights_only": "pickles are never read otherwise",
    "map_location": "pass device= to get_model",
    "model_dir": "set BUNDLES_CACHE to the folder",
    "file_name": "files are cached by their content",
}


def wants_progress(dl_kwargs: Mapping[str, Any] | None) -> bool:
    """Return whether torchaudio's ``dl_kwargs`` leave the progress bar on, and warn that they are deprecated.

    Raises:
        BuildArgumentError: an entry is none of those of ``torch.hub.load_state_dict_from_url``.
    """
    if dl_kwargs is None:
        return True
    if not isinstance(dl_kwargs, Mapping) or (unknown := [key for key in dl_kwargs if key not in _DL_KWARGS]):
        what = shown(unknown) if isinstance(dl_kwargs, Mapping) else shown(dl_kwargs)
        raise BuildArgumentError(f"dl_kwargs holds {what}; it takes {', '.join(_DL_KWARGS)}.")
    advice = "; ".join(f"{key}: {_DL_KWARGS[key]}" for key in dl_kwargs) or "leave it out"
    warn(f"dl_kwargs is deprecated ({advice}).", DeprecationWarning)  # type: ignore[arg-type]
    return bool(dl_kwargs.get("progress", True))
