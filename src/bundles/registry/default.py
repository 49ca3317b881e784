"""The registry that ``bundles.X`` means, and the functions on it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bundles.registry.origins import add_everything, add_folder
from bundles.registry.registry import Registry

if TYPE_CHECKING:
    from bundles.spec.bundle import Bundle

default_registry = Registry(populate=add_everything)


def list_bundles(match: str = "*", **metadata: object) -> list[str]:
    """Return the names of bundles in natural order, without importing torch or using the network.

    Args:
        match: glob on the name, case ignored.
        metadata: value or glob that the bundle's metadata must have.

    Raises:
        RegistryError: no bundle has metadata of that name.

    >>> list_bundles("crepe_*", task="pitch")
    ['CREPE_FULL', 'CREPE_TINY']
    """
    return default_registry.names(match, **metadata)


def register(bundle: Bundle, *, override: bool = False) -> None:
    """Add a bundle made in Python to the default registry.

    Raises:
        DuplicateBundleError: the name is taken; both origins are named.

    >>> import bundles, torch
    >>> register(bundles.Bundle("MY_MLP", builder=lambda width: torch.nn.Linear(width, 2),
    ...                         architecture={"width": 8}), override=True)
    >>> bundles.MY_MLP.get_model(pretrained=False)
    Linear(in_features=8, out_features=2, bias=True)
    """
    default_registry.add(bundle, override=override)


def register_cards(folder: str | os.PathLike[str], *, override: bool = False) -> None:
    """Add a folder of TOML cards to the default registry, the good ones also where others are broken.

    Raises:
        CardError: lists every problem of every card that was not added: file, line, key, cause.
        NotADirectoryError: there is no such folder.

    >>> import bundles, tempfile, pathlib
    >>> card = '''
    ... [MY_CREPE]
    ... builder = "torchcrepe"
    ... architecture.model = "tiny"
    ... layers = { blocks = ["conv{i}", "conv{i}_BN"], head = "classifier" }
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "mine.toml").write_text(card)
    ...     register_cards(folder, override=True)
    >>> bundles.MY_CREPE.plan().trainable
    ('classifier.weight', 'classifier.bias')
    """
    add_folder(default_registry, os.fspath(folder), override=override)
