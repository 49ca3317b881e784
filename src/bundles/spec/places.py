"""Folders of the user's: where files are kept that can be had again, and where settings are."""

from __future__ import annotations

import os


def cache_folder() -> str:
    """Return the cache folder: ``BUNDLES_CACHE``, else ``bundles`` in the user's cache."""
    if given := os.environ.get("BUNDLES_CACHE"):
        return os.path.expanduser(given)
    return os.path.join(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "bundles")


def config_folder() -> str:
    """Return the folder of the user's settings: ``bundles`` in ``XDG_CONFIG_HOME`` or its default."""
    default = os.environ.get("APPDATA") if os.name == "nt" else None
    user = os.environ.get("XDG_CONFIG_HOME") or default or "~/.config"
    return os.path.join(os.path.expanduser(user), "bundles")


def is_switched_on(variable: str) -> bool:
    """Whether an environment variable says yes: ``1``, ``on``, ``yes`` or ``true``."""
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")
