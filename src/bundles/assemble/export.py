"""Export: a bundle as a folder of its own, with its weights, its card and the files that go with it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bundles.assemble.check import check_policy
from bundles.assemble.describe import Card, card_of, plain_name
from bundles.assemble.draft import build_draft
from bundles.assemble.model import get_model
from bundles.assemble.request import bundle_of
from bundles.errors import BuildError, BundlesError, CacheError, CardError, StateDictMismatchError
from bundles.registry.cards import read_card_file, to_bundle
from bundles.registry.names import name_problem
from bundles.sources.cache import sync_folder
from bundles.sources.fetch import fetch
from bundles.spec.bundle import Bundle
from bundles.spec.hub import path_problem

if TYPE_CHECKING:
    import torch
    from torch import nn

CARD, WEIGHTS = "bundle.toml", "model.safetensors"
_HEADER = "# Written by `bundles export`. `bundles.get_bundle('file:FOLDER')` reads the folder.\n\n"


def export(
    bundle: Bundle | str,
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    name: str | None = None,
    force: bool = False,
) -> Path:
    """Write a bundle as a folder that ``bundles.get_bundle("file:FOLDER")`` reads.

    The folder holds ``model.safetensors``, the tensors under the model's own names; ``bundle.toml``, the
    card, with their digest; and the bundle's assets. It appears whole or not at all. The same model gives
    the same bytes.

    Args:
        bundle: a bundle, its name or its address; one whose builder a card can name.
        folder: where; it must not exist, or be empty.
        model: a model that the bundle built and that was trained since, exported in place of the
            pretrained one. With a head of its own size it belongs to another bundle: one with that size in
            its architecture, ``dataclasses.replace(bundle, architecture={...})``. Where its dtype is not
            that of a newly built one, it is the tensors that keep it, not the model that is read back.
        name: of the bundle in the card; by default its own, or that of the repository that it is in.
        force: write into a folder that is not empty, over files of the same names. The card comes last,
            and its digests refuse what an interrupt left half written.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is not empty.
        CardError: a card cannot describe the bundle, or have that name.
        FreezeError: its default policy or mode is none for its model.
        StateDictMismatchError: the model is not one that the bundle builds.
        CacheError: the folder cannot be written.
        SourceError, WeightsError, BuildError: the pretrained model cannot be had.

    >>> import bundles, tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     folder = export("CREPE_TINY", f"{parent}/crepe")
    ...     print(sorted(path.name for path in folder.iterdir()), bundles.get_bundle(f"file:{folder}").task)
    ['bundle.toml', 'model.safetensors'] pitch
    """
    from bundles.freezing.derive import inside, layer_groups

    target = Path(os.path.realpath(os.path.expanduser(folder)))
    if not force:
        _check_empty(target)
    bundle = bundle_of(bundle)
    title = plain_name(bundle.name) if name is None else name
    if problem := name_problem(title):
        raise CardError(f"The name {title!r} {problem}.", problems=(problem,))
    drafted = build_draft(bundle, None, "meta")
    check_policy(bundle, drafted)
    draft = drafted.model
    card = card_of(bundle, layer_groups(draft))
    model = get_model(bundle) if model is None else inside(model)
    tensors = _tensors(bundle, model, draft)
    with _making(target, force) as place:
        card["weights"] = _write_weights(place, tensors)
        if assets := {key: _copy_asset(place, bundle, key) for key in bundle.assets}:
            card["assets"] = assets
        _write_card(place, title, card)
        _check(place, title, draft)
    return target


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "not empty" if folder.is_dir() else "a file"
        raise FileExistsError(
            f"The folder {folder} is {what}: name another one, or write over it with --force (force=True)."
        )


def _tensors(bundle: Bundle, model: nn.Module, draft: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model, each once, after a check that the bundle builds such a model."""
    from bundles.builders.layout import is_storable
    from bundles.builders.match import mismatches, ties, torn
    from bundles.builders.shards import is_sharded
    from bundles.builders.walk import state_of

    state, expected = state_of(model), state_of(draft)
    if any(map(is_sharded, state.values())):
        raise BuildError("The model is spread over several devices: gather it into one before exporting it.")
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    wrong = [*mismatches(expected, state), *torn(ties(expected), state)]
    if differences := [*missing, *unexpected, *wrong]:
        raise StateDictMismatchError(
            f"The model is not one that {bundle.name} builds, it differs in {', '.join(differences[:6])}: "
            f"export it under a bundle that does, dataclasses.replace(bundle, architecture={{...}}).",
            missing=tuple(missing),
            unexpected=tuple(unexpected),
            mismatched=tuple(wrong),
        )
    twice = {name for _, *others in ties(expected) for name in others}
    if odd := [name for name, value in state.items() if not is_storable(value)]:
        raise BuildError(f"A file cannot hold {', '.join(odd[:6])}: dense tensors with values are needed.")
    return {name: value.detach().cpu() for name, value in state.items() if name not in twice}


def _write_weights(place: Path, tensors: dict[str, torch.Tensor]) -> Card:
    from bundles.builders.layout import write_tensors

    path = place / WEIGHTS
    with path.open("xb") as file:
        write_tensors(tensors, file, {"format": "pt"})
        _sync(file)
    path.chmod(0o444)  # mapped, not copied, by whoever loads it: nobody may write to it again
    return _entry(path)


def _copy_asset(place: Path, bundle: Bundle, key: str) -> Card:
    source = bundle.assets[key]
    path = place / source.name
    if path_problem(source.name) or source.name in (CARD, WEIGHTS) or path.exists():
        path = place / f"{plain_name(key)}-{plain_name(source.name)}"
    with fetch(source).open("rb") as old, path.open("xb") as new:
        shutil.copyfileobj(old, new)
        _sync(new)
    return _entry(path)


def _entry(path: Path) -> Card:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    return {"source": f"file:{path.name}", "sha256": digest, **({"size": size} if size else {})}


def _write_card(place: Path, name: str, card: Card) -> None:
    text = _HEADER + _toml(name, card)
    found = tomllib.loads(text)
    if found != {name: card} or list(found[name]["layers"]) != list(card["layers"]):
        raise CardError(f"The card of {name} cannot be written as TOML.", problems=())
    with (place / CARD).open("xb") as file:
        file.write(text.encode())
        _sync(file)


def _toml(name: str, card: Card) -> str:
    import tomlkit

    layers = tomlkit.table()
    for key, entry in card["layers"].items():  # on one line each: tables would come last, and order counts
        layers[key] = _inline(entry) if isinstance(entry, dict) else entry
    return tomlkit.dumps({name: {**card, "layers": layers}})


def _inline(entry: Card) -> Any:
    import tomlkit

    table = tomlkit.inline_table()
    table.update(entry)
    return table


def _check(place: Path, name: str, draft: nn.Module) -> None:
    """Read the card back, and build by it: TOML has no null, so a default may have come in its place."""
    path = str(place / CARD)
    found = read_card_file(path)
    problems = [line.replace(f"{place}{os.sep}", "") for line in found.problems]
    if problems:
        raise CardError("\n".join(problems), problems=tuple(problems))
    built = build_draft(to_bundle(name, found.cards[name], path), None, "meta").model
    if (old := _configuration(draft)) != (new := _configuration(built)):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        raise CardError(
            f"The configuration of {name} cannot be written as a card: {', '.join(keys)} would be another.",
            problems=tuple(keys),
        )


def _configuration(model: nn.Module) -> dict[str, Any]:
    """What the model's library says about it, if it keeps such a thing."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return dict(to_dict()) if callable(to_dict) else {}


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _making(target: Path, force: bool) -> Iterator[Path]:
    """Yield a new folder beside the target, which takes its place, or whose files do, when all went well."""
    place = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.incomplete")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir()
        yield place
        _publish(place, target, force)
    except BundlesError:
        raise
    except OSError as error:
        if error.errno is None:
            raise  # our own words, somebody was faster
        raise CacheError(
            f"The folder {target} cannot be written ({error.strerror or error}): name another one."
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _publish(place: Path, target: Path, force: bool) -> None:
    if not force:
        _check_empty(target)  # somebody may have been faster
    if not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()
        place.rename(target)
    else:
        for path in sorted(place.iterdir(), key=lambda path: path.name == CARD):
            path.replace(target / path.name)
        sync_folder(target)
    sync_folder(target.parent)
