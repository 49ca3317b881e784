"""What the recipes share: data in folders, read and generated, and small models without weights.

Generated data is written as your own would lie there, so that a recipe has one way to read both.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import bundles
from bundles.demo.numerals import NUMERALS, numerals
from bundles.demo.speech import RATE, utterances
from bundles.features.inputs.open import open_inputs
from bundles.features.inputs.preprocess import preprocessing_of

SOUNDS = (".wav", ".flac", ".mp3", ".ogg")
IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def start(main: Callable[[], None]) -> None:
    """Run a recipe; an error of bundles is one sentence, which needs no traceback."""
    try:
        main()
    except bundles.BundlesError as error:
        raise SystemExit(str(error)) from error


def at_least_one(text: str) -> int:
    """A number of at least 1 on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 1.")
    return int(text)


def class_folder(folder: Path, endings: Sequence[str]) -> tuple[list[Path], Tensor, list[str]]:
    """Return the files of a folder of one subfolder per class, their labels ``[files]``, and the classes."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder: give one of one subfolder per class.")
    found = {
        entry.name: files
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
        and (files := [path for path in sorted(entry.iterdir()) if path.suffix.lower() in endings])
    }
    if len(found) < 2:
        raise SystemExit(
            f"{folder} holds files {', '.join(endings)} in {len(found)} of its subfolders: give one "
            f"that does in two or more, one for each class."
        )
    labels = [label for label, files in enumerate(found.values()) for _ in files]
    return [path for files in found.values() for path in files], torch.tensor(labels), list(found)


def class_folders(
    folder: Path, other: Path | None, endings: Sequence[str]
) -> tuple[list[Path], Tensor, list[str], list[int], list[int]]:
    """As :func:`class_folder`, then the numbers of files to train on and to test.

    Those to test are all of ``other``, or without it a fifth of ``folder``.
    """
    paths, labels, names = class_folder(folder, endings)
    if other is None:
        return paths, labels, names, *split(len(paths))
    more, theirs, found = class_folder(other, endings)
    if found != names:
        raise SystemExit(f"{other} has the classes {', '.join(found)}, and {folder} {', '.join(names)}.")
    both = [*paths, *more]
    return both, torch.cat([labels, theirs]), names, [*range(len(paths))], [*range(len(paths), len(both))]


def table(path: Path) -> list[tuple[str, str]]:
    """Return the rows of a file of two columns parted by a tab, without a heading."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path} cannot be read as text in UTF-8 ({error}): give another file.") from error
    if not any(rows):
        raise SystemExit(f"{path} holds no lines: give a file of two columns parted by a tab.")
    for number, row in enumerate(rows, 1):
        if len(row) not in (0, 2):
            raise SystemExit(f"Line {number} of {path} has {len(row)} columns parted by a tab, not two.")
        if not all(map(str.strip, row)):
            raise SystemExit(f"Line {number} of {path} has an empty column: fill it, or leave the line out.")
    return [(row[0], row[1]) for row in rows if row]


def split(count: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return four fifths of the numbers below ``count``, and the others, at random."""
    if count < 5:
        raise SystemExit(f"{count} are too few, since a fifth is kept back to test on: give 5 or more.")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order[count // 5 :], order[: count // 5]


def waveforms(bundle: bundles.Bundle, paths: Sequence[Path]) -> list[Tensor]:
    """Return audio ``[samples]`` of one channel, at the rate of the bundle."""
    return list(readable(bundle, paths, "waveform"))


def readable(bundle: bundles.Bundle, paths: Sequence[Path], kind: str) -> Iterator[Tensor]:
    """Yield files as the model of a bundle is given them; where some cannot be read, end with the first."""
    preprocessing = preprocessing_of(bundle)
    if preprocessing.holds != kind:
        raise SystemExit(f"{bundle.name} takes {preprocessing.holds}, not {kind}: give another --bundle.")
    inputs = open_inputs(list(map(str, paths)), preprocessing)
    bad = []
    for index, item in enumerate(inputs):
        if isinstance(item, bundles.InputError):
            bad.append(f"{paths[index]}{str(item).removeprefix(inputs.name(index))}")
        else:
            yield item.tensor
    if bad:
        raise SystemExit(f"{len(bad)} of {len(paths)} files cannot be used; the first: {bad[0]}")


def batches(order: Sequence[int], size: int) -> Iterable[list[int]]:
    """Yield the numbers in a new random order, so many at a time."""
    return chunks([order[int(index)] for index in torch.randperm(len(order))], size)


def chunks(order: Sequence[int], size: int) -> Iterable[list[int]]:
    """Yield the numbers in their order, so many at a time."""
    return (list(order[start : start + size]) for start in range(0, len(order), size))


# --- generated ------------------------------------------------------------------------------------


def write_numerals(folder: Path, count: int, part: str = "train") -> Path:
    """German numerals that ship with the package, over noise: a subfolder each, and ``texts.tsv``.

    The voices of ``part="test"`` are not those of ``"train"``.
    """
    waves, labels = numerals(part, count, torch.Generator().manual_seed(0))
    rows = []
    for number, (wave, label) in enumerate(zip(waves, labels.tolist(), strict=True)):
        rows.append((folder / NUMERALS[label] / f"{number:04d}.wav", NUMERALS[label]))
        write_wave(rows[-1][0], wave)
    (folder / "texts.tsv").write_text("".join(f"{p}\t{t}\n" for p, t in rows), encoding="utf-8")
    return folder


def write_speech(folder: Path) -> None:
    """The numerals as they are, without noise, in voices of training and of test."""
    for number, said in enumerate(utterances("train") + utterances("test")):
        write_wave(folder / f"{number:03d}.wav", said.wave)


def write_wave(path: Path, wave: Tensor) -> None:
    """Write audio ``[samples]`` at 16 kHz, as quiet as it takes not to be clipped."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (wave / wave.abs().max().clamp(min=1)).numpy(), RATE, subtype="PCM_16")


def write_sentences(path: Path, count: int) -> None:
    """Sentences of words without sense: of which sort there are more is the class."""
    draw = random.Random(0)
    sorts = [[f"{start}{end}" for start in "bdgklm" for end in ends] for ends in (("a", "e"), ("o", "u"))]
    rows = []
    for _ in range(count):
        words = [draw.choice(sorts[draw.random() < 0.5]) for _ in range(draw.randrange(7, 20, 2))]
        more = sum(word in sorts[1] for word in words) > len(words) / 2
        rows.append(f"{' '.join(words)}\t{'dark' if more else 'bright'}\n")
    path.write_text("".join(rows), encoding="utf-8")


def write_images(folder: Path, count: int) -> None:
    """Stripes across, stripes along and checks, of a random width and colour, over noise."""
    from PIL import Image

    draw = np.random.default_rng(0)
    at = np.arange(64)
    for number in range(count):
        kind = ("across", "along", "checks")[number % 3]
        wave = np.sign(np.sin(at * 2 * np.pi / draw.integers(8, 24) + draw.uniform(0, 6)))
        pattern = {"across": wave[:, None] + 0 * at, "along": wave + 0 * at[:, None]}.get(kind)
        pattern = np.outer(wave, wave) if pattern is None else pattern
        pixels = (
            128 + 50 * pattern[..., None] * draw.uniform(0.3, 1, 3) + 25 * draw.standard_normal((64, 64, 3))
        )
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / kind / f"{number:04d}.png")


def random_xlmr(folder: Path, sentences: Sequence[str]) -> bundles.Bundle:
    """XLM-R of two blocks with random weights, and a tokenizer of whole words, as a bundle of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import XLMRobertaConfig, XLMRobertaModel

    words = sorted({word for sentence in sentences for word in sentence.split()})
    ids = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = XLMRobertaConfig(
        vocab_size=len(ids),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=66,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    bundle = bundles.get_bundle(f"file:{folder}")
    return replace(
        bundle,
        assets={"tokenizer": bundles.WeightSource(f"file:{folder / 'tokenizer.json'}")},
        metadata={**bundle.metadata, "companions": "text", "max_tokens": 64},
    )


def random_vit(folder: Path) -> bundles.Bundle:
    """The ViT of timm for tests, of six blocks, with random weights, as a bundle of its own."""
    import timm

    timm.models.save_for_hf(
        timm.create_model("test_vit", num_classes=2, global_pool="avg"), folder, safe_serialization=True
    )
    return bundles.get_bundle(f"file:{folder}")
