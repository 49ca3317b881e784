"""Inputs of features: every kind of dataset gives the same tensors, and what cannot be read is named."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import bundles
from bundles.builders.head import EncoderWithHead
from bundles.demo import pitch
from bundles.demo.speech import utterances
from bundles.errors import InputError, MissingDependencyError
from bundles.features.inputs.files import common_folder, find
from bundles.features.inputs.item import Item, identity_of
from bundles.features.inputs.open import Inputs, open_inputs
from bundles.features.inputs.preprocess import Preprocessing, preprocessing_of
from bundles.features.inputs.stamps import Stamps
from bundles.features.inputs.waveform import _resampler
from bundles.spec.bundle import Bundle
from bundles.spec.source import WeightSource
from transformers_zoo import TINY

SPEECH = Preprocessing("waveform", 16000)
TOKENS = Preprocessing("tokens")


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    return (random.standard_normal((samples, channels)) * 0.1).astype("float32")


def write(path: Path, samples: np.ndarray[Any, Any], rate: int = 16000, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **how)
    return path


def encoded(samples: np.ndarray[Any, Any], rate: int = 16000, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


def identities(inputs: Inputs) -> list[str]:
    return [item.identity.hex() for item in items(inputs)]


def items(inputs: Inputs) -> list[Item]:
    found = list(inputs)
    assert all(isinstance(item, Item) for item in found), found
    return [item for item in found if isinstance(item, Item)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five spoken utterances as 16-bit files, in two folders, with what is no audio beside them."""
    folder = tmp_path_factory.mktemp("speech")
    for number, said in enumerate(utterances()):
        write(folder / ("a" if number < 2 else "b") / f"{number}.wav", said.wave.numpy())
    (folder / "readme.md").write_text("no audio")
    (folder / ".hidden.wav").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def known(folder: Path) -> list[str]:
    """What every way to read that folder has to give."""
    return identities(open_inputs(folder, SPEECH))


# --- identity -------------------------------------------------------------------------------------


def test_an_identity_is_of_type_shape_and_every_bit() -> None:
    wave = torch.randn(64)
    others = [wave.clone(), wave.double(), wave[None], wave.clone(), torch.cat([wave, wave[:1]])]
    others[0][63] = torch.nextafter(others[0][63], torch.tensor(9.0))
    others[3][0] = -wave[0]
    assert len({identity_of(tensor) for tensor in [wave, *others]}) == 6
    assert identity_of(torch.tensor([0.0])) != identity_of(torch.tensor([-0.0]))
    assert len(identity_of(wave)) == 32


def test_an_identity_does_not_depend_on_where_the_values_lie() -> None:
    whole = torch.randn(8, 6)
    assert identity_of(whole[:, ::2]) == identity_of(whole[:, ::2].contiguous())
    assert identity_of(whole.T.contiguous().T) == identity_of(whole)
    assert identity_of(whole.requires_grad_()) == identity_of(whole.detach())
    for kind in (torch.bfloat16, torch.int64, torch.uint8, torch.float16):
        assert identity_of(torch.zeros(3).to(kind)) == identity_of(torch.zeros(3).to(kind))
    assert identity_of(torch.zeros(0)) != identity_of(torch.zeros(0, 1))


# --- audio ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_files_are_mixed_and_resampled_as_the_libraries_do(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x.{ending}", noise(11025, channels=2), rate=22050)
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wanted = torchaudio.functional.resample(torch.from_numpy(samples).T.mean(0), rate, 16000)
    item = open_inputs(str(path), SPEECH).read(0)
    assert item.tensor.dtype == torch.float32
    assert item.tensor.is_contiguous()
    assert torch.equal(item.tensor, wanted)
    assert (item.name, item.identity) == (f"x.{ending}", identity_of(wanted))


def test_what_is_read_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    inputs = open_inputs([write(tmp_path / "x.wav", noise(300_000, 2), rate=44100)], SPEECH)
    alone = inputs.read(0).identity
    torch.set_num_threads(2)  # the fixture of the session sets it back
    assert inputs.read(0).identity == alone


def test_filters_are_made_once_and_give_the_bits_of_those_made_each_time() -> None:
    for rate in (8000, 11025, 14400, 22050, 44100, 48000):
        wave = torch.from_numpy(noise(3000)[:, 0])
        found = open_inputs([(wave, rate)] if rate != 14400 else [{"audio": wave, "sr": rate}], SPEECH)
        assert torch.equal(found.read(0).tensor, torchaudio.functional.resample(wave, rate, 16000))
    assert _resampler(48000, 16000) is _resampler(48000, 16000)


def test_arrays_of_the_other_byte_order_are_numbers() -> None:
    wave = noise(800)[:, 0]
    codes = (wave * 2**15).astype("int16")
    assert identities(open_inputs([wave.astype(">f4")], SPEECH)) == identities(open_inputs([wave], SPEECH))
    assert identities(open_inputs([codes.astype(">i2")], SPEECH)) == identities(open_inputs([codes], SPEECH))


@pytest.mark.parametrize(("subtype", "kind"), [("PCM_16", torch.int16), ("PCM_32", torch.int32)])
def test_codes_of_a_file_and_of_a_tensor_are_the_same_waveform(
    subtype: str, kind: torch.dtype, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.wav", noise(800), subtype=subtype)
    codes = torch.from_numpy(soundfile.read(path, dtype=str(kind).removeprefix("torch."))[0])
    assert codes.dtype == kind
    assert identities(open_inputs([codes], SPEECH)) == identities(open_inputs([path], SPEECH))


@pytest.mark.parametrize("shape", [(800,), (1, 800), (2, 800)])
def test_channels_come_first_and_are_mixed(shape: tuple[int, ...]) -> None:
    wave = torch.randn(shape, dtype=torch.float64)
    found = open_inputs([wave], SPEECH).read(0).tensor
    assert torch.equal(found, wave.float() if wave.dim() == 1 else wave.float().mean(0))


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (torch.zeros(0), "Item 0 holds no samples"),
        (torch.tensor([0.0, float("nan")]), "infinite or no number"),
        (torch.tensor([0.0, float("-inf")]), "infinite or no number"),
        (torch.zeros(8, dtype=torch.int64), "holds int64, which is no audio: give float32, int16"),
        (torch.zeros(8, dtype=torch.bool), "holds bool, which is no audio"),
        (torch.zeros(800, 2), r"has the shape \[800, 2\]: give \[samples\] or \[channels, samples\]"),
        (torch.zeros(1, 2, 8), r"has the shape \[1, 2, 8\]"),
        ((torch.zeros(8), 7), "second entry, 7, is no common sample rate: .* if it is a label, the wave"),
        ((torch.zeros(8), 16000.5), "second entry, 16000.5, is no common sample rate"),
        ({"audio": torch.zeros(8), "sampling_rate": 0.5}, "has the sample rate 0.5, which is no number"),
        ({"audio": torch.zeros(8), "sampling_rate": 44101}, "44101, which is odd beside 16000: resample"),
        ((torch.zeros(8), torch.tensor(8000)), r"entry, tensor\(8000\), is a label or a sample rate: if"),
        ({"audio": torch.zeros(8), "sr": "8 kHz"}, "has the sample rate '8 kHz', which is no number"),
        (torch.zeros(()), r"is a single number: give a list of waveforms, of one as \[waveform\]"),
        (torch.zeros(8, device="meta"), "is a tensor that is sparse, nested or on meta: give one that holds"),
        (torch.zeros(8).to_sparse(), "is a tensor that is sparse, nested or on meta"),
        (
            {"path": "no/such.wav", "label": 1},
            "is the file no/such.wav, which is not there: get it, or leave",
        ),
        ({"bytes": None, "path": "no/such.wav"}, "is the file no/such.wav, which is not there"),
        ("no/such.wav", "such.wav is not there"),
        ({"text": "hello"}, r"has the entries \['text'\]: one of audio, waveform, .* is needed"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        (object(), "is a object, which holds no numbers"),
        ([["a"]], "is a list, which holds no numbers"),
        (None, "is a NoneType, which holds no numbers"),
    ],
)
def test_what_is_no_audio_is_said_in_a_sentence(wave: Any, words: str) -> None:
    inputs = open_inputs([wave], SPEECH)
    with pytest.raises(InputError, match=words) as caught:
        inputs.read(0)
    assert caught.value.inputs == (inputs.name(0),)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), InputError)


def truncated(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent.wav": (lambda path: None, "is not there"),
    "empty.wav": (lambda path: path.write_bytes(b""), "is empty"),
    "text.wav": (lambda path: path.write_text("this is text"), r"cannot be read as audio \(Format not rec"),
    "folder.wav": (lambda path: path.mkdir(), "is no file"),
    "cut.wav": (lambda path: truncated(write(path, noise(8000)), 0.7), "ends too early, after 55"),
    "header.wav": (lambda path: truncated(write(path, noise(8000)), 0.001), "cannot be read as audio"),
    "cut.flac": (lambda path: truncated(write(path, noise(8000)), 0.7), "cannot be read as audio .flac dec"),
    "cut.mp3": (lambda path: truncated(write(path, noise(80000)), 0.5), "ends too early, after"),
    "cut.ogg": (lambda path: truncated(write(path, noise(8000)), 0.95), "holds no samples|cannot be read"),
    "silent.wav": (lambda path: write(path, noise(0)), "holds no samples"),
    "nan.wav": (lambda path: write(path, noise(9) * np.nan, subtype="FLOAT"), "infinite or no number"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    breaks, words = BROKEN[name]
    breaks(tmp_path / name)
    good = [write(tmp_path / f"{number}.wav", noise(800)) for number in range(2)]
    found = list(open_inputs([good[0], tmp_path / name, good[1]], SPEECH))
    assert [type(item) for item in found] == [Item, InputError, Item]
    assert isinstance(found[1], InputError)
    assert found[1].inputs == (name,)
    with pytest.raises(InputError, match=f"^{name} .*({words})"):
        raise found[1]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may read every file")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    write(tmp_path / "x.wav", noise(800)).chmod(0)
    with pytest.raises(InputError, match=r"^x.wav may not be read by this user: change its permissions, or"):
        open_inputs(tmp_path / "x.wav", SPEECH).read(0)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_that_came_through_a_pipe_does_not_say_its_length(size: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.wav", noise(800))
    whole = open_inputs([path], SPEECH).read(0)
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", size)
    path.write_bytes(data)
    assert open_inputs([path], SPEECH).read(0).identity == whole.identity


def test_without_soundfile_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pretrained-bundles\[audio\]'"):
        list(open_inputs(folder, SPEECH))


# --- files ----------------------------------------------------------------------------------------


def test_a_folder_a_glob_and_a_list_are_the_same_files(
    folder: Path, known: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a/0.wav", "a/1.wav", "b/2.wav", "b/3.wav", "b/4.wav"]
    monkeypatch.chdir(folder.parent)
    ways = [folder, f"{folder.name}/**/*.wav", f"{folder}/*/*.wav", sorted(folder.glob("*/*.wav"))]
    for dataset in ways:
        inputs = open_inputs(dataset, SPEECH)
        assert [inputs.name(index) for index in range(len(inputs))] == names
        assert identities(inputs) == known
    assert len(set(known)) == 5


def test_a_list_keeps_its_order(folder: Path, known: list[str]) -> None:
    backwards = sorted(folder.glob("*/*.wav"), reverse=True)
    assert identities(open_inputs([str(path) for path in backwards], SPEECH)) == known[::-1]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{}/*.mp3", "the glob matches no file; give a file, a folder or a glob"),
        ("{}/nothing.wav", "the file is not there"),
        ("{}/empty", "the folder is empty"),
        ("{}/texts", "holds files that end in md: one of aif, .*wav, tar, parquet is needed"),
    ],
)
def test_nothing_to_read_is_an_error_at_once(pattern: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.md").write_text("no audio")
    with pytest.raises(InputError, match=words):
        open_inputs(pattern.format(tmp_path), SPEECH)


def test_files_of_two_sorts_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="mixes tar with other files: give one sort"):
        open_inputs([folder / "a" / "0.wav", folder / "x.tar"], SPEECH)


def test_the_root_of_a_glob_is_its_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "x" / "1.wav", noise(9))
    monkeypatch.chdir(tmp_path)
    assert find("data/*/1.wav") == (["data/x/1.wav"], "data")
    assert find("*/x/1.wav") == (["data/x/1.wav"], ".")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/data") == ([str(tmp_path / "data/x/1.wav")], str(tmp_path / "data"))
    assert common_folder(["x/1.wav", str(tmp_path / "data" / "2.wav")]) == str(tmp_path)


def test_links_are_followed_once_and_any_name_can_be_written(tmp_path: Path) -> None:
    write(tmp_path / "store" / "1.wav", noise(9))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "itself").symlink_to(tmp_path / "data")
    strange = os.fsdecode(b"caf\xe9.wav")
    write(tmp_path / "data" / "x.wav", noise(9)).rename(tmp_path / "data" / strange)
    inputs = open_inputs(tmp_path / "data", SPEECH)
    assert [inputs.name(index) for index in range(len(inputs))] == [r"caf\udce9.wav", "linked/1.wav"]
    assert [item.name for item in items(inputs)] == [r"caf\udce9.wav", "linked/1.wav"]


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 3),
    samples=st.integers(3, 400),
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]),
    form=st.sampled_from([("WAV", "PCM_16"), ("WAV", "DOUBLE"), ("WAV", "ULAW"), ("FLAC", "PCM_24")]),
    seed=st.integers(0, 99),
)
def test_however_audio_is_given_it_is_the_same_input(
    channels: int, samples: int, rate: int, form: tuple[str, str], seed: int
) -> None:
    file = io.BytesIO()
    soundfile.write(file, noise(samples, channels, seed), rate, format=form[0], subtype=form[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{form[0].lower()}")
        path.write_bytes(file.getvalue())
        wave = torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0]).T
        entry = {"audio": {"array": wave.tolist(), "sampling_rate": rate}}
        ways = [path, file.getvalue(), {"bytes": file.getvalue(), "path": None}, (wave, rate), entry]
        found = {identity for way in ways for identity in identities(open_inputs([way], SPEECH))}
        found |= set(identities(open_inputs(folder, SPEECH)))
        found |= set(
            identities(open_inputs(tar(Path(folder, "x.tar"), {path.name: file.getvalue()}), SPEECH))
        )
    assert len(found) == 1


# --- datasets of torch ----------------------------------------------------------------------------


class Spoken(Dataset[Any]):
    """As those of torchaudio: (waveform [channels, samples], sample rate, transcript, ...)."""

    def __init__(self, folder: Path, form: str) -> None:
        self.paths = sorted(folder.glob("*/*.wav"))
        self.form = form

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        samples, rate = soundfile.read(self.paths[index], dtype="float32", always_2d=True)
        wave = torch.from_numpy(samples).T
        forms: dict[str, Any] = {
            "torchaudio": (wave, rate, "four one", 3),
            "datasets": {"audio": {"array": samples[:, 0].astype("float64"), "sampling_rate": rate}},
            "flat": {"audio": wave, "sample_rate": rate, "label": 3},
            "speech": {"speech": samples[:, 0].tolist(), "sampling_rate": rate},
            "paths": {"path": str(self.paths[index]), "audio": str(self.paths[index])},
            "labelled": (wave, torch.tensor(3)),
            "array": samples[:, 0],
            "row": {"path": str(self.paths[index]), "label": 3},
            "numpy rate": (samples.T, np.int64(rate)),
            "path": self.paths[index],
            "bytes": self.paths[index].read_bytes(),
        }
        return forms[self.form]


@pytest.mark.parametrize(
    "form",
    [
        "torchaudio",
        "datasets",
        "flat",
        "speech",
        "paths",
        "labelled",
        "array",
        "row",
        "numpy rate",
        "path",
        "bytes",
    ],
)
def test_a_dataset_of_torch_gives_what_its_files_do(form: str, folder: Path, known: list[str]) -> None:
    inputs = open_inputs(Spoken(folder, form), SPEECH)
    assert identities(inputs) == known
    assert [inputs.name(index) for index in range(len(inputs))] == ["0", "1", "2", "3", "4"]
    assert identities(pickle.loads(pickle.dumps(inputs))) == known
    assert identities(open_inputs(Subset(Spoken(folder, form), [3, 0]), SPEECH)) == [known[3], known[0]]


def test_rows_of_a_tensor_are_items_and_labels_are_left_out() -> None:
    waves = torch.randn(3, 400)
    wanted = [identity_of(wave).hex() for wave in waves]
    assert identities(open_inputs(waves, SPEECH)) == wanted
    assert identities(open_inputs(waves.numpy(), SPEECH)) == wanted
    assert identities(open_inputs(list(waves), SPEECH)) == wanted
    assert identities(open_inputs(TensorDataset(waves), SPEECH)) == wanted
    assert identities(open_inputs(TensorDataset(waves, torch.arange(3)), SPEECH)) == wanted


def test_a_rate_that_is_known_is_changed_and_one_that_is_not_is_refused() -> None:
    wave = torch.randn(8000)
    named = [
        {"audio": wave, name: 8000} for name in ("sampling_rate", "sample_rate", "samplerate", "sr", "fs")
    ]
    outside = {"audio": {"array": wave}, "sampling_rate": 8000}
    for item in ((wave[None], 8000), *named, outside):
        found = open_inputs([item], SPEECH).read(0).tensor
        assert torch.equal(found, torchaudio.functional.resample(wave, 8000, 16000))
    unknown = Preprocessing("waveform")
    assert torch.equal(open_inputs([wave], unknown).read(0).tensor, wave)
    with pytest.raises(InputError, match=r"8000, and that of the model is not known: pass preprocessing="):
        open_inputs([(wave, 8000)], unknown).read(0)


class Failing(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        if index == 0:
            raise KeyError("the disk is gone\n at line 3")
        return torch.zeros(8)


def test_whatever_a_dataset_raises_is_said_in_a_line() -> None:
    found = list(open_inputs(Failing(), SPEECH))
    assert isinstance(found[1], Item)
    with pytest.raises(InputError, match=r"^Item 0 cannot be read \(KeyError: .the disk is gone"):
        open_inputs(Failing(), SPEECH).read(0)
    assert isinstance(found[0], InputError)
    assert "\n" not in str(found[0])


def test_of_an_error_without_words_its_cause_is_said() -> None:
    class Wrapping(Failing):
        def __getitem__(self, index: int) -> Any:
            try:
                return super().__getitem__(index)
            except KeyError as error:
                raise RuntimeError from error

    with pytest.raises(InputError, match=r"^Item 0 cannot be read \(RuntimeError: 'the disk is gone"):
        open_inputs(Wrapping(), SPEECH).read(0)


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(8)
        yield {"id": "second", "audio": torch.ones(8)}
        yield torch.zeros(0)
        yield (torch.zeros(9), 16000)


def test_a_stream_is_walked_through() -> None:
    inputs = open_inputs(Streamed(), SPEECH)
    assert inputs.count is None
    assert [getattr(item, "name", str(item)) for item in inputs] == [
        *("0", "second", "Item 2 holds no samples: leave it out.", "3")
    ]
    with pytest.raises(TypeError, match="no random access"):
        inputs.read(0)
    with pytest.raises(TypeError, match="no length"):
        len(inputs)


def test_a_stream_that_breaks_says_so() -> None:
    class Broken(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield torch.zeros(8)
            raise OSError("connection lost")

    with pytest.raises(InputError, match=r"broke after 1 items \(OSError: connection lost\)"):
        list(open_inputs(Broken(), SPEECH))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (b"RIFF", "A bytes is no dataset: give a path, glob or folder"),
        ({"audio": [1]}, "A dict is no dataset"),
        (42, "A int is no dataset"),
        (None, "A NoneType is no dataset"),
        (iter([torch.zeros(8)]), r"A list_iterator is no dataset: .* give list\(generator\)"),
        (DataLoader(Failing()), "A DataLoader is no dataset: .* give its .dataset"),
        ([], "The list holds nothing: give at least one item"),
        (torch.zeros(0, 5), "The Tensor holds nothing"),
        (torch.zeros(()), "A Tensor is no dataset"),
        (Dataset(), "A Dataset is no dataset: .* It has no __len__"),
    ],
)
def test_what_is_no_dataset_is_refused(dataset: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_inputs(dataset, SPEECH)


def test_a_table_of_pandas_is_refused_and_a_column_of_it_is_taken(folder: Path, known: list[str]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": [str(path) for path in sorted(folder.glob("*/*.wav"))]})
    with pytest.raises(InputError, match=r"A DataFrame is no dataset: .* as list\(frame\['path'\]\)"):
        open_inputs(frame, SPEECH)
    assert identities(open_inputs(list(frame["path"]), SPEECH)) == known


# --- tars -----------------------------------------------------------------------------------------


def tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def spoken_members(folder: Path) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for path in sorted(folder.glob("*/*.wav")):
        key = path.relative_to(folder).with_suffix("").as_posix()
        members |= {f"{key}.json": b"{}", f"{key}.mic.wav": path.read_bytes()}
    return members


def test_tars_give_what_the_files_give_in_any_order(folder: Path, known: list[str], tmp_path: Path) -> None:
    members = list(spoken_members(folder).items())
    tar(tmp_path / "0.tar", dict(members[:6]))
    tar(tmp_path / "1.tar", dict(members[6:]))
    inputs = open_inputs(f"{tmp_path}/*.tar", SPEECH)
    assert [inputs.name(index) for index in range(5)] == ["a/0", "a/1", "b/2", "b/3", "b/4"]
    again = pickle.loads(pickle.dumps(inputs))
    assert [again.read(index).identity.hex() for index in (4, 0, 3, 1, 2)] == [
        known[index] for index in (4, 0, 3, 1, 2)
    ]
    assert len({inputs.stamp(index) for index in range(5)}) == 5


# Its iterator leaves closing the tar to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_itself_is_a_stream_with_the_same_keys(
    folder: Path, known: list[str], tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tar(tmp_path / "0.tar", spoken_members(folder))
    inputs = open_inputs(webdataset.WebDataset(str(path), shardshuffle=False), SPEECH)
    assert inputs.count is None
    assert [item.name for item in items(inputs)] == [item.name for item in items(open_inputs(path, SPEECH))]
    assert identities(inputs) == known


def test_a_tar_that_is_none_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("text" * 1000)
    tar(tmp_path / "packed.tar", {"x.wav": b"x"}, "w:gz")
    tar(tmp_path / "other.tar", {"x.json": b"{}", "x.txt": b"hello"})
    tar(tmp_path / "twice.tar", {"x.wav": b"1", "x.flac": b"2"})
    for name, words in {
        "text.tar": "cannot be read as a tar .*: give one that is not compressed",
        "packed.tar": "cannot be read as a tar",
        "other.tar": "holds json, txt: one of aif, .* is needed",
        "twice.tar": "holds two inputs under the key 'x'",
        "absent.tar": "the file is not there",
    }.items():
        with pytest.raises(InputError, match=words):
            open_inputs(tmp_path / name, SPEECH)


def test_a_tar_that_is_cut_off_tells_at_the_member_that_is(folder: Path, tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", spoken_members(folder))
    truncated(path, 0.5)
    found = list(open_inputs(path, SPEECH))
    assert [type(item) for item in found[:-1]] == [Item] * (len(found) - 1)
    assert len(found) > 1
    with pytest.raises(InputError, match=r"ends too early in .*0.tar"):
        raise found[-1]  # type: ignore[misc]


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> Any:
    return pytest.importorskip("datasets")


def audio_rows(folder: Path) -> dict[str, list[Any]]:
    paths = sorted(folder.glob("*/*.wav"))
    return {"audio": [str(path) for path in paths], "id": [f"said-{path.stem}" for path in paths]}


def test_audio_of_datasets_is_read_without_torchcodec(
    folder: Path, known: list[str], tables: Any, tmp_path: Path
) -> None:
    by_path = tables.Dataset.from_dict(audio_rows(folder)).cast_column("audio", tables.Audio())
    inputs = open_inputs(by_path, SPEECH)
    assert [inputs.name(index) for index in range(5)] == [f"said-{number}" for number in range(5)]
    assert identities(inputs) == known
    assert identities(pickle.loads(pickle.dumps(inputs))) == known
    assert identities(open_inputs(by_path.to_iterable_dataset(), SPEECH)) == known
    assert items(open_inputs(by_path.to_iterable_dataset(), SPEECH))[0].name == "said-0"
    by_path.to_parquet(tmp_path / "audio.parquet")  # with the bytes, as push_to_hub does
    embedded = tables.Dataset.from_parquet(str(tmp_path / "audio.parquet"), cache_dir=str(tmp_path / "c"))
    assert identities(open_inputs(embedded, SPEECH)) == known


def test_arrays_texts_and_ids_of_datasets(known: list[str], tables: Any, folder: Path) -> None:
    waves = [soundfile.read(path, dtype="float32")[0] for path in sorted(folder.glob("*/*.wav"))]
    rows = [{"array": wave, "sampling_rate": 16000} for wave in waves]
    arrays = tables.Dataset.from_dict({"audio": rows})
    assert identities(open_inputs(arrays, SPEECH)) == known
    assert identities(open_inputs(arrays.with_format("torch"), SPEECH)) == known
    flat = tables.Dataset.from_dict({"speech": waves, "sampling_rate": [16000] * 5})
    assert identities(open_inputs(flat, SPEECH)) == known
    paths = tables.Dataset.from_dict({"path": audio_rows(folder)["audio"], "label": range(5)})
    assert identities(open_inputs(paths, SPEECH)) == known
    half = arrays.with_transform(
        lambda rows: {"speech": [torch.tensor(row["array"]) / 2 for row in rows["audio"]]}
    )
    assert torch.equal(open_inputs(half, SPEECH).read(0).tensor, torch.from_numpy(waves[0]) / 2)
    ids = tables.Dataset.from_dict({"input_ids": [[1, 2, 3], [4]], "attention_mask": [[1, 1, 1], [1]]})
    assert [item.tensor.tolist() for item in items(open_inputs(ids, TOKENS))] == [[1, 2, 3], [4]]


def test_a_row_whose_name_is_missing_is_called_by_its_number(tables: Any, tmp_path: Path) -> None:
    rows = tables.Dataset.from_dict({"audio": [[0.0] * 8, [1.0] * 8], "id": ["a", None]})
    rows.to_parquet(tmp_path / "x.parquet")
    for inputs in (open_inputs(rows, SPEECH), open_inputs(tmp_path / "x.parquet", SPEECH)):
        assert [inputs.name(index) for index in range(2)] == ["a", "1"]


def test_a_dataset_without_the_column_names_those_it_has(tables: Any) -> None:
    rows = tables.Dataset.from_dict({"text": ["a"], "label": [1]})
    with pytest.raises(InputError, match=r"The dataset has the columns text, label: one of audio, .* is nee"):
        open_inputs(rows, SPEECH)
    with pytest.raises(InputError, match="Of a DatasetDict give one of its splits"):
        open_inputs(tables.DatasetDict({"train": rows}), SPEECH)


def test_parquet_is_read_row_by_row(folder: Path, known: list[str], tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = sorted(folder.glob("*/*.wav"))
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    table = arrow.table({"audio": rows, "id": [path.stem for path in paths], "label": list(range(5))})
    parquet.write_table(table.slice(0, 4), tmp_path / "0.parquet", row_group_size=3)
    parquet.write_table(table.slice(4), tmp_path / "1.parquet")
    inputs = open_inputs(f"{tmp_path}/*.parquet", SPEECH)
    assert [inputs.name(index) for index in range(5)] == ["0", "1", "2", "3", "4"]
    assert [inputs.read(index).identity.hex() for index in (3, 0, 4, 2, 1)] == [
        known[index] for index in (3, 0, 4, 2, 1)
    ]
    assert identities(pickle.loads(pickle.dumps(inputs))) == known
    (tmp_path / "readme.md").write_text("no table")
    assert identities(open_inputs(tmp_path, SPEECH)) == known
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    parquet.write_table(arrow.table({"audio": waves}), tmp_path / "lists.parquet")
    assert identities(open_inputs(tmp_path / "lists.parquet", SPEECH)) == known


def test_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(InputError, match=r"cannot be read as Parquet .*: get it again"):
        open_inputs(tmp_path / "text.parquet", SPEECH)
    parquet.write_table(arrow.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x.parquet has the columns x: one of audio"):
        open_inputs(tmp_path / "x.parquet", SPEECH)


# --- texts and pictures ---------------------------------------------------------------------------


@pytest.fixture
def text_bundle(tmp_path: Path) -> Bundle:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, "good": 1, "morning": 2, "evening": 3}
    rules = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    rules.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    rules.save(str(tmp_path / "tokenizer.json"))
    source = WeightSource(f"file:{tmp_path / 'tokenizer.json'}")
    base: Bundle = bundles.ROBERTA_BASE_ENCODER
    return replace(base, name="TINY", assets={"tokenizer": source})


def test_texts_become_the_ids_of_the_bundle_s_tokenizer(text_bundle: Bundle, tmp_path: Path) -> None:
    texts = ["good morning", "good evening good", "morning"]
    preprocessing = preprocessing_of(text_bundle)
    inputs = open_inputs(texts, preprocessing)
    assert [item.tensor.tolist() for item in items(inputs)] == [[1, 2], [1, 3, 1], [2]]
    assert inputs.read(0).tensor.dtype == torch.int64
    ids = [torch.tensor([1, 2], dtype=torch.int32), [1, 3, 1], np.array([2])]
    assert identities(open_inputs(ids, preprocessing)) == identities(inputs)
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    assert identities(open_inputs(f"{tmp_path}/*.txt", preprocessing)) == identities(inputs)
    assert identities(pickle.loads(pickle.dumps(inputs))) == identities(inputs)


def test_a_tokenizer_is_in_the_facts_by_its_digest(text_bundle: Bundle, tmp_path: Path) -> None:
    facts = preprocessing_of(text_bundle).to_dict()
    assert (facts["kind"], facts["max_tokens"], len(facts["tokenizer"])) == ("tokens", 256, 64)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"evening"', '"night"'))
    assert preprocessing_of(text_bundle).to_dict() != facts


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "Item 0 holds no tokens"),
        (torch.zeros(3), r"is float32 \[3\], and the model takes tokens"),
        (torch.zeros(2, 3, dtype=torch.long), r"is int64 \[2, 3\], and the model takes tokens"),
        (torch.ones(3, dtype=torch.bool), r"is bool \[3\], and the model takes tokens"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (Path("no-such.txt"), "is not there"),
    ],
)
def test_what_is_no_text_is_said(value: Any, words: str, text_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=words):
        open_inputs([value], preprocessing_of(text_bundle)).read(0)


def test_text_for_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"is one of texts, and the model has no transform\(\) for them"):
        open_inputs(["good morning"], TOKENS).read(0)


@pytest.mark.parametrize("name", ["RESNET50_IMAGENET1K_V2", "TIMM_VIT_BASE_PATCH14_DINOV2_LVD142M"])
def test_pictures_are_prepared_by_the_bundle_s_transforms(name: str, tmp_path: Path) -> None:
    bundle = bundles.get_bundle(name)
    preprocessing = preprocessing_of(bundle)
    pixels = torch.randint(256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "x.png")
    wanted = bundle.transforms()(picture)
    ways = [picture, pixels, tmp_path / "x.png", wanted, (picture, 3), {"image": picture, "label": 3}]
    inputs = open_inputs(ways, preprocessing)
    assert torch.equal(inputs.read(0).tensor, wanted)
    assert len(set(identities(inputs))) == 1
    assert "transforms" in preprocessing.to_dict()
    assert preprocessing.to_dict() == preprocessing_of(bundle).to_dict()


def test_grey_pictures_become_coloured_ones() -> None:
    preprocessing = preprocessing_of(bundles.RESNET50_IMAGENET1K_V2)
    grey = Image.new("L", (50, 50), 128)
    one = torch.full((1, 50, 50), 128, dtype=torch.uint8)
    same = [grey, grey.convert("RGBA"), one]
    assert len(set(identities(open_inputs(same, preprocessing)))) == 1


def test_pictures_of_datasets_and_of_tars(tables: Any, tmp_path: Path) -> None:
    preprocessing = preprocessing_of(bundles.RESNET50_IMAGENET1K_V2)
    pictures = [Image.new("RGB", (40, 40), (number, 0, 0)) for number in (0, 200)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    wanted = identities(open_inputs(tmp_path, preprocessing))
    assert identities(open_inputs(pictures, preprocessing)) == wanted
    rows = tables.Dataset.from_dict({"image": pictures}, features=tables.Features({"image": tables.Image()}))
    assert identities(open_inputs(rows, preprocessing)) == wanted
    path = tar(
        tmp_path / "x.tar", {f"{number}.png": (tmp_path / f"{number}.png").read_bytes() for number in (0, 1)}
    )
    assert identities(open_inputs(path, preprocessing)) == wanted


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(224, 224), r"is float32 \[224, 224\], and the model takes images"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"is int64 \[3, 8, 8\]"),
        (b"no picture", "cannot be read as a picture"),
        ({"image": "no/such.png"}, "is the file no/such.png, which is not there"),
        (Image.new("I;16", (8, 8), 4096), r"is a picture of more than 8 bits \(mode I;16\): scale it to 8"),
        (Image.new("F", (8, 8), 0.5), r"is a picture of more than 8 bits \(mode F\)"),
    ],
)
def test_what_is_no_picture_is_said(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_inputs([value], preprocessing_of(bundles.RESNET50_IMAGENET1K_V2)).read(0)


def test_a_file_of_more_than_8_bits_is_refused_and_one_with_colours_of_its_own_is_not(tmp_path: Path) -> None:
    preprocessing = preprocessing_of(bundles.RESNET50_IMAGENET1K_V2)
    Image.new("I;16", (40, 40), 4096).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"^x.png is a picture of more than 8 bits \(mode I;16\)"):
        open_inputs(tmp_path / "x.png", preprocessing).read(0)
    few = Image.effect_noise((40, 40), 50).convert("P")
    few.save(tmp_path / "few.png")
    found = identities(open_inputs(tmp_path / "few.png", preprocessing))
    assert found == identities(open_inputs([few.convert("RGB")], preprocessing))


def test_a_picture_that_is_cut_off_is_named(tmp_path: Path) -> None:
    Image.effect_noise((200, 200), 50).save(tmp_path / "x.png")
    truncated(tmp_path / "x.png", 0.5)
    with pytest.raises(InputError, match=r"^x.png cannot be read as a picture \(.*\): give PNG"):
        open_inputs(tmp_path, preprocessing_of(bundles.RESNET50_IMAGENET1K_V2)).read(0)


# --- what a model is given ------------------------------------------------------------------------


def test_a_bundle_its_model_and_a_model_with_a_head_say_the_same() -> None:
    bundle = bundles.WAV2VEC2_NANO_DIGITS
    wanted = Preprocessing("waveform", 16000)
    assert preprocessing_of(bundle) == wanted
    assert preprocessing_of(bundle.get_model()) == wanted
    assert preprocessing_of(bundle.get_model(head=lambda size: nn.Linear(size, 2))) == wanted
    assert preprocessing_of(bundle).to_dict() == {
        "kind": "waveform",
        "sample_rate": 16000,
        "mono": "mean",
        "resample": "torchaudio",
        "resampling_method": "sinc_interp_hann",
        "lowpass_filter_width": 6,
        "rolloff": 0.99,
        "normalize": False,
    }


def test_frames_are_taken_as_they_are() -> None:
    preprocessing = preprocessing_of(bundles.CREPE_TINY)
    frames = torch.randn(4, 1024, dtype=torch.float16)
    assert torch.equal(open_inputs(frames, preprocessing).read(2).tensor, frames[2])
    assert torch.equal(open_inputs([frames], preprocessing).read(0).tensor, frames)


def test_audio_is_cut_into_the_frames_of_crepe(folder: Path) -> None:
    preprocessing = preprocessing_of(bundles.CREPE_TINY)
    assert preprocessing.to_dict()["hop_length"] == 160
    inputs = open_inputs(folder, preprocessing)
    wave = pitch.read_wav(folder / "a" / "0.wav", 16000)
    assert torch.equal(inputs.read(0).tensor, pitch.frames(wave, bundles.CREPE_TINY))
    others = [(wave[None], 16000), {"audio": wave, "sampling_rate": 16000}, wave, wave[None]]
    assert set(identities(open_inputs(others, preprocessing))) == {inputs.read(0).identity.hex()}
    with pytest.raises(InputError, match="Item 0 has 1023 samples, and a frame has 1024"):
        open_inputs([(wave[:1023], 16000)], preprocessing).read(0)


def test_a_model_of_frames_that_are_not_cut_here_takes_no_files(folder: Path) -> None:
    preprocessing = preprocessing_of(bundles.EMFORMER_RNNT_BASE_LIBRISPEECH)
    assert preprocessing.to_dict() == {"kind": "frames"}
    with pytest.raises(InputError, match="and nothing tells how to make inputs of them: give"):
        open_inputs(folder / "a" / "0.wav", preprocessing)
    with pytest.raises(InputError, match="is a file, and EMFORMER_RNNT_BASE_LIBRISPEECH takes frames"):
        open_inputs([b"RIFF"], preprocessing).read(0)


@pytest.fixture
def wav2vec2(tmp_path: Path) -> Path:
    """A folder as ``save_pretrained`` writes it, with what its feature extractor does."""
    transformers = pytest.importorskip("transformers")
    config = TINY["Wav2Vec2Model-do_stable_layer_norm"].config
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**config))
    model.save_pretrained(tmp_path / "model")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=True).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def test_a_repository_of_transformers_says_what_its_model_was_trained_on(
    wav2vec2: Path, folder: Path
) -> None:
    from transformers import AutoFeatureExtractor

    bundle = bundles.get_bundle(f"file:{wav2vec2}")
    preprocessing = preprocessing_of(bundle)
    assert (preprocessing.sample_rate, preprocessing.normalize) == (8000, True)
    wave = torch.randn(4000) * 3 + 1
    extractor = AutoFeatureExtractor.from_pretrained(wav2vec2)  # type: ignore[no-untyped-call]
    wanted = extractor(wave.numpy(), sampling_rate=8000)
    found = open_inputs([wave], preprocessing).read(0).tensor
    assert torch.equal(found, torch.from_numpy(wanted["input_values"][0]))
    assert preprocessing_of(bundle.get_model()) == preprocessing
    assert preprocessing.to_dict() != replace(preprocessing, normalize=False).to_dict()
    (wav2vec2 / "preprocessor_config.json").unlink()
    assert preprocessing_of(bundle) == Preprocessing("waveform")
    with pytest.raises(InputError, match=r"the model is not known: pass .* or --sample-rate 16000"):
        open_inputs(folder, preprocessing_of(bundle)).read(0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "is no table in JSON: get it again"),
        ("[16000]", r"holds \[16000\]: a table is needed"),
        ('{"sampling_rate": -1}', "gives the sample rate -1: mend the file"),
        ('{"sampling_rate": true}', "gives the sample rate True"),
    ],
)
def test_what_a_repository_says_is_checked(text: str, words: str, wav2vec2: Path) -> None:
    (wav2vec2 / "preprocessor_config.json").write_text(text)
    with pytest.raises(InputError, match=words):
        preprocessing_of(bundles.get_bundle(f"file:{wav2vec2}"))


def test_classes_of_transformers_say_what_they_take() -> None:
    class Encoder(nn.Module):
        main_input_name = "input_values"

    assert preprocessing_of(Encoder()) == Preprocessing("waveform")
    assert preprocessing_of(EncoderWithHead(Encoder(), nn.Linear(1, 1))) == Preprocessing("waveform")


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (torch.zeros(80), "waveform"),
        (torch.zeros(8, dtype=torch.long), "tokens"),
        (torch.zeros(3, 8, 8), "image"),
    ],
)
def test_of_any_other_model_the_first_item_is_looked_at(first: torch.Tensor, kind: str) -> None:
    assert preprocessing_of(nn.Linear(1, 1), [first, first]).kind == kind


def test_what_nothing_tells_has_to_be_said() -> None:
    with pytest.raises(InputError, match=r"what Linear is given: pass preprocessing=Prepro"):
        preprocessing_of(nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"shape \[2, 2\] may be anything: pass preprocessing="):
        preprocessing_of(nn.Linear(1, 1), [torch.zeros(2, 2)])
    with pytest.raises(InputError, match="Nothing tells what the items of a stream are: pass preprocessing="):
        preprocessing_of(nn.Linear(1, 1), Streamed())
    with pytest.raises(InputError, match=r"holds files, and nothing tells how .* or pass preprocessing="):
        preprocessing_of(nn.Linear(1, 1), __file__)
    with pytest.raises(InputError, match="no kind of input 'sound': give one of waveform, tokens"):
        Preprocessing("sound")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sample_rate=0 is no number of hertz"):
        Preprocessing("waveform", 0)


# --- stamps ---------------------------------------------------------------------------------------


def test_a_stamp_tells_that_a_file_changed_without_reading_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.wav", noise(800))
    inputs = open_inputs([path, tmp_path / "absent.wav"], SPEECH)
    before = inputs.stamp(0)
    assert before == inputs.stamp(0)
    assert inputs.stamp(1) is None
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` and `rsync -t` leave it
    assert inputs.stamp(0) != before
    assert open_inputs([torch.zeros(8)], SPEECH).stamp(0) is None


def test_stamps_are_kept_but_not_of_files_just_written(tmp_path: Path) -> None:
    path = write(tmp_path / "x.wav", noise(800))
    inputs = open_inputs([path], SPEECH)
    identity = inputs.read(0).identity
    stamps = Stamps(tmp_path / "store")
    stamps.note(inputs.stamp(0), identity)
    assert stamps.identity(inputs.stamp(0)) is None
    os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**10))
    stamps.note(inputs.stamp(0), identity)
    stamps.save()
    again = Stamps(tmp_path / "store")
    assert again.identity(inputs.stamp(0)) == identity
    assert again.identity(None) is None
    os.utime(path, ns=(0, 0))
    assert again.identity(inputs.stamp(0)) is None


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"/x": [1, 2, 3]}', '{"/x": 5}', '{"/x": [1, 2, 3, "zz"]}']
)
def test_stamps_of_somebody_else_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "stamps.json").write_text(text)
    assert Stamps(tmp_path).identity(("/x", 1, 2, 3)) is None
