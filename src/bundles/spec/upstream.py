"""Spellings of upstream libraries that are still understood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundles.errors import BuildArgumentError, FreezeArgumentError, warn
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


# What torchtext's bundles take besides, and how it is said here.
_TORCHTEXT = {
    "freeze_encoder": "freeze=True",
    "freeze_model": "freeze='all'",
    "load_weights": "pretrained=True or False",
    "with_generation_utils": "the model's own generate()",
    "gen_kwargs": "the arguments of the model's own generate()",
}
_FREEZES: dict[str, Any] = {"freeze_encoder": True, "freeze_model": "all"}


def from_torchtext(
    freeze: Any, pretrained: bool, options: Mapping[str, Any]
) -> tuple[Any, bool, dict[str, Any]]:
    """Return what is to be frozen, whether weights are loaded, and the options that are none of torchtext's.

    ``freeze_encoder=True`` is ``freeze=True``, ``freeze_model=True`` is ``freeze="all"``, ``load_weights=``
    is ``pretrained=``; a ``DeprecationWarning`` says so.

    Raises:
        FreezeArgumentError: two of them say what is to be frozen.
        BuildArgumentError: one is neither ``True`` nor ``False``, contradicts ``pretrained=``, or asks for
            torchtext's generation utilities.
    """
    given = {name: value for name, value in options.items() if name in _TORCHTEXT}
    for name, value in given.items():
        _check_torchtext(name, value)
        warn(f"{name}= is deprecated: take {_TORCHTEXT[name]}.", DeprecationWarning)  # type: ignore[arg-type]
    asked = [name for name in _FREEZES if given.get(name)]
    if len(asked) > 1 or (asked and freeze is not False):
        others = " and ".join(f"{name}=True" for name in asked[1:]) or f"freeze={freeze!r}"
        raise FreezeArgumentError(
            f"{asked[0]}=True and {others} both say what is frozen: leave {asked[0]}= out."
        )
    if given.get("load_weights") and not pretrained:
        raise BuildArgumentError("load_weights=True contradicts pretrained=False: leave load_weights= out.")
    rest = {name: value for name, value in options.items() if name not in _TORCHTEXT}
    return _FREEZES[asked[0]] if asked else freeze, given.get("load_weights", pretrained), rest


def _check_torchtext(name: str, value: Any) -> None:
    if name == "gen_kwargs" and value is not None:
        raise BuildArgumentError(
            "gen_kwargs= is not taken: give its entries to generate() of the model of a _GENERATION bundle."
        )
    if name != "gen_kwargs" and type(value) is not bool:
        raise BuildArgumentError(f"{name}={shown(value)} is neither True nor False.")
    if name == "with_generation_utils" and value:
        raise BuildArgumentError(
            "with_generation_utils=True is not taken: leave it out, and call generate() of the model of a "
            "_GENERATION bundle."
        )
