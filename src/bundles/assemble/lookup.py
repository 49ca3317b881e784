"""Look a bundle up: by name in the registry, by address on the Hub or in a folder."""

from __future__ import annotations

import os

from bundles.registry import default
from bundles.spec.bundle import Bundle


def get_bundle(name: str) -> Bundle:
    """Return the bundle of that name, or the one that a repository or folder holds.

    Args:
        name: of a bundle in the registry; or ``hf:owner/repo@commit``, a repository on the Hugging Face
            Hub; or ``file:DIR``, a folder on this machine, of which the path will do if there is a ``/`` in
            it. Either is read in the layout of ``bundles`` (a card, ``bundle.toml``), of transformers or
            of timm (a ``config.json``). A branch, a tag or nothing in the commit's place stands for the
            commit that it means now, and warns. Behind each of them may stand ``@sha256:...``, as
            :meth:`bundles.Bundle.pin` gives it.

    Raises:
        UnknownBundleError: there is none; the three closest names are given.
        CardError: there is one, and its card is broken.
        BuildError: a repository or folder holds nothing that can be built.
        PinError: an address is malformed.
        PinMismatchError: card or bytes are others than the pin says.
        SourceError, CacheError: an address cannot be read.

    >>> get_bundle("CREPE_TINY").license
    'MIT'
    """
    if isinstance(name, str) and "@sha256:" in name:
        from bundles.assemble.pinned import check_pinned  # which few need
        from bundles.spec.pin import split_pin

        if (parts := split_pin(name)) is not None:
            return check_pinned(get_bundle(parts[0]), parts[1], download=False)
    if isinstance(name, str) and (name.startswith(("hf:", "file:")) or _is_folder(name)):
        from bundles.assemble.repository import read_repository

        return read_repository(f"file:{name}" if _is_folder(name) else name)
    return default.default_registry[name]


def is_repository(address: str) -> bool:
    """Whether an address is one of a repository or folder, rather than of a file."""
    if address.startswith("hf:"):
        return "#" not in address
    if address.startswith("file:"):
        return os.path.isdir(os.path.expanduser(address[len("file:") :]))
    return _is_folder(address)


def _is_folder(path: str) -> bool:
    """Whether a text is the path of a folder; the name of a bundle has no separator."""
    return os.sep in path and os.path.isdir(path)
