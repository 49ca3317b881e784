"""Names of bundles: which are good, and how they are sorted."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from itertools import groupby


def name_problem(name: str) -> str | None:
    """Return what is wrong with a bundle's name, or ``None``."""
    plain = name.isascii() and name.replace("_", "").replace("-", "").replace(".", "").isalnum()
    reserved = name.upper().partition(".")[0] in _RESERVED
    if not plain or not name[0].isalpha() or name.endswith(".") or reserved or len(name) > 96:
        return "is not a name: letters, digits, '_', '-' and '.', a letter first, 96 at most"
    return None


# What Windows does not take as a file name; pins and caches may one day be named after bundles.
_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)}


def natural_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort ``BASE2`` before ``BASE10``.

    >>> sorted(["BASE10", "BASE2"], key=natural_key)
    ['BASE2', 'BASE10']
    """
    runs = ((digits, "".join(run)) for digits, run in groupby(name, str.isdecimal))
    return tuple((not digits, int(run) if digits else 0, run) for digits, run in runs)


def merged(names: Iterable[str], order: list[str]) -> list[str]:
    """Return names in natural order, most of which are in that order already.

    Args:
        names: all of them, each once.
        order: most of them, sorted; what is not among ``names`` is left out.
    """
    rest = set(names)
    result = [name for name in order if name in rest]
    rest.difference_update(order)
    if len(rest) * 16 > len(result):
        return sorted([*result, *rest], key=natural_key)
    for name in rest:
        insort(result, name, key=natural_key)
    return result


def instead_of(name: object) -> str | None:
    """Return what to type in the place of what cannot be the name of a bundle; ``None`` where it can.

    >>> instead_of("https://huggingface.co/google/vit-base-patch16-224")
    "for that repository of the Hugging Face Hub, type bundles.get_bundle('hf:google/vit-base-patch16-224')"
    """
    import os
    import re

    from bundles.spec.hub import hub_problem

    if not isinstance(name, str):
        what = f": give 'file:{name}'" if isinstance(name, os.PathLike) else ", as 'CREPE_TINY'"
        return f"a name is text{what}"
    repo = re.sub(r"^(https?://(huggingface\.co|hf\.co)/|(?i:hf):(//)?)", "", name.strip()).rstrip("/")
    if "/" in repo and not hub_problem(repo):
        return f"for that repository of the Hugging Face Hub, type bundles.get_bundle('hf:{repo}')"
    if name.startswith(("/", "./", "../", "~/")):
        return "nor is there such a folder: check the path, or type 'file:DIR'"
    return None
