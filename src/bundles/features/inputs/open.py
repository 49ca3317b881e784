"""Open a dataset, whatever it is: a closed table of what is taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from bundles.display import safe
from bundles.errors import BundlesError, InputError
from bundles.features.inputs.files import Files, common_folder, extension, find
from bundles.features.inputs.item import Item, identity_of
from bundles.features.inputs.prepare import prepare
from bundles.features.inputs.preprocess import Preprocessing
from bundles.features.inputs.raw import FILES, column_of
from bundles.features.inputs.source import Items, Source, Stamp, Stream, why
from bundles.features.inputs.tables import Parquet, Rows, undecoded
from bundles.features.inputs.tars import Tars

_TAKEN = (
    "a path, glob or folder; a list of paths, tensors or texts; a torch Dataset; a datasets.Dataset; tars; "
    "Parquet files"
)


class Inputs:
    """The items of a dataset as a model is given them.

    It pickles where the dataset does. Items are in the order of the dataset; files of a folder or glob are
    sorted by path.

    Attributes:
        preprocessing: what becomes of the items.
        count: how many there are; ``None`` of a stream, which can only be walked through.

    >>> import torch
    >>> inputs = open_inputs([torch.zeros(400), torch.ones(300)], Preprocessing("waveform", 16000))
    >>> len(inputs), inputs.read(1).tensor.shape
    (2, torch.Size([300]))
    """

    def __init__(self, source: Source | Stream, preprocessing: Preprocessing) -> None:
        self._source = source
        self.preprocessing = preprocessing
        self.count = None if isinstance(source, Stream) else len(source)

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError("A stream has no length: walk through it.")
        return self.count

    def name(self, index: int) -> str:
        """Return what people call an item: its path, its key, or its number."""
        return _text(self._indexed().name(index))

    def stamp(self, index: int) -> Stamp | None:
        """Return what tells, without reading it, whether the file of an item changed; ``None`` of others."""
        return self._indexed().stamp(index)

    def read(self, index: int) -> Item:
        """Return an item.

        Raises:
            InputError: it cannot be read, or is not what the model takes; ``inputs`` holds its name.
            SourceError, BuildError, MissingDependencyError: what prepares it cannot be had.
        """
        source = self._indexed()
        name = str(index)
        try:
            name = self.name(index)
            raw = source.get(index)
        except InputError as error:
            raise _named(name, error) from error
        except BundlesError:
            raise
        except Exception as error:  # of a dataset of somebody else, which may raise anything
            raise _named(name, f"cannot be read ({why(error)}): mend it or leave it out.") from error
        return self._item(name, raw)

    def __iter__(self) -> Iterator[Item | InputError]:
        """Yield every item, and in the place of each unreadable one its error.

        Raises:
            InputError: a stream broke.
        """
        if not isinstance(self._source, Stream):
            yield from (_caught(self.read, index) for index in range(len(self)))
            return
        for told, raw in self._source:
            name = _text(told)
            yield _named(name, raw) if isinstance(raw, InputError) else _caught(self._item, name, raw)

    def _item(self, name: str, raw: Any) -> Item:
        try:
            tensor = prepare(raw, self.preprocessing)
        except InputError as error:
            raise _named(name, error) from error
        return Item(name, tensor, identity_of(tensor))

    def _indexed(self) -> Source:
        if isinstance(self._source, Stream):
            raise TypeError("A stream has no random access: walk through it.")
        return self._source


def open_inputs(dataset: Any, preprocessing: Preprocessing) -> Inputs:
    """Return the items of a dataset.

    Args:
        dataset: one of

            - a path, a folder or a glob, or a list of paths: of audio, pictures or text in UTF-8, an item
              each; of tars as webdataset writes them; of Parquet files. All are of one sort;
            - a list or a torch ``Dataset`` with random access, of tensors, arrays, texts, pictures, of tuples
              that begin with one, as ``(waveform, sample_rate, ...)`` of torchaudio, or of mappings; a
              tensor, whose rows are the items;
            - a ``datasets.Dataset`` with a column ``audio``, ``input_ids``, ``text`` or ``image``;
            - an ``IterableDataset`` of torch, webdataset or datasets, which is a stream.
        preprocessing: what becomes of the items, see
            :func:`bundles.features.inputs.preprocess.preprocessing_of`.

    Raises:
        InputError: it is none of these, there is nothing in it, or files of several sorts are.
        MissingDependencyError: pyarrow is not there for Parquet.
    """
    return Inputs(_source(dataset, preprocessing.holds), preprocessing)


def _source(dataset: Any, kind: str) -> Source | Stream:
    if isinstance(dataset, str | os.PathLike):
        return _files(*find(os.fspath(dataset)), kind, dataset)
    if _is(dataset, "datasets", "Dataset"):
        is_transformed = dataset.format["type"] == "custom"  # by the user's set_transform
        return _filled(Items(dataset, kind) if is_transformed else Rows(dataset, kind), dataset)
    if _is(dataset, "datasets", "IterableDataset"):
        column = column_of(dataset.column_names or (), kind)
        return Stream(undecoded(dataset, column) if column else dataset, kind)
    if _is(dataset, "torch.utils.data", "IterableDataset"):
        return Stream(dataset, kind)
    is_frame = _is(dataset, "pandas", "DataFrame")  # which counts rows and gives columns
    if not _has_rows(dataset) or isinstance(dataset, bytes | Mapping) or is_frame:
        raise InputError(f"A {_type(dataset)} is no dataset: give {_TAKEN}.{_advice(dataset)}")
    if isinstance(dataset, list | tuple) and dataset and _all_paths(dataset, kind):
        paths = [os.path.expanduser(os.fspath(path)) for path in dataset]
        return _files(paths, common_folder(paths), kind, dataset)
    return _filled(Items(dataset, kind), dataset)


def _files(paths: list[str], root: str, kind: str, dataset: Any) -> Source:
    """Files by their extensions."""
    if isinstance(dataset, str | os.PathLike) and os.path.isdir(os.path.expanduser(dataset)):
        paths = _useful(paths, kind, dataset)
    endings = {extension(path) for path in paths}
    if endings == {"parquet"}:
        return _filled(Parquet(paths, kind), dataset)
    if kind == "frames":
        raise InputError(
            f"{_what(dataset)} holds files, and nothing tells how to make inputs of them: give tensors, or "
            f"pass preprocessing=Preprocessing('waveform', 16000)."
        )
    if endings == {"tar"}:
        return Tars(paths, kind)
    if strange := endings & {"parquet", "tar"}:
        raise InputError(f"{_what(dataset)} mixes {strange.pop()} with other files: give one sort.")
    return Files(paths, root)


def _useful(paths: list[str], kind: str, folder: Any) -> list[str]:
    """The files of a folder that hold inputs: in a table or a tar where there are no others."""
    for wanted in (FILES[kind], ("tar",), ("parquet",)):
        if found := [path for path in paths if extension(path) in wanted]:
            return found
    there = ", ".join(sorted({extension(path) for path in paths})[:8])
    needed = ", ".join((*FILES[kind], "tar", "parquet"))
    raise InputError(f"{_what(folder)} holds files that end in {there}: one of {needed} is needed.")


def _filled(source: Source, dataset: Any) -> Source:
    if len(source) == 0:
        raise InputError(f"{_what(dataset)} holds nothing: give at least one item.")
    return source


def _all_paths(dataset: list[Any] | tuple[Any, ...], kind: str) -> bool:
    kinds = os.PathLike if kind == "tokens" else str | os.PathLike  # a list of str is one of texts there
    return all(isinstance(entry, kinds) for entry in dataset)


def _has_rows(dataset: Any) -> bool:
    is_number = getattr(dataset, "ndim", None) == 0
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not is_number


def _is(value: object, module: str, name: str) -> bool:
    """Whether it is of a class of a library that is not imported for this."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, name, ()))


def _advice(dataset: object) -> str:
    module = type(dataset).__module__
    if module.startswith("ray."):
        return " One of Ray is read by engine='ray'."
    if _is(dataset, "torch.utils.data", "DataLoader"):
        return " Of a DataLoader give its .dataset."
    if _is(dataset, "datasets", "DatasetDict"):
        return " Of a DatasetDict give one of its splits."
    if _is(dataset, "pandas", "DataFrame"):
        return " Of a DataFrame give a column, as list(frame['path'])."
    if isinstance(dataset, Iterator):
        return " Of a generator give list(generator)."
    return (
        " It has no __len__." if hasattr(dataset, "__getitem__") and not hasattr(dataset, "__len__") else ""
    )


def _text(name: str) -> str:
    """A name that can be written, whatever bytes the name of a file is."""
    return name.encode(errors="backslashreplace").decode()


def _type(dataset: object) -> str:
    return type(dataset).__name__


def _what(dataset: Any) -> str:
    is_path = isinstance(dataset, str | os.PathLike)
    return safe(os.fspath(dataset), limit=400) if is_path else f"The {_type(dataset)}"


def _named(name: str, error: InputError | str) -> InputError:
    """The error of an item, which so far is told without its name."""
    called = f"Item {name}" if name.isdecimal() else safe(name, limit=400)
    return InputError(f"{called} {error}", inputs=(name,))


def _caught(read: Any, *arguments: Any) -> Item | InputError:
    try:
        found: Item = read(*arguments)
        return found
    except InputError as error:
        return error
