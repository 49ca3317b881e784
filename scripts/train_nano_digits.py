"""Train WAV2VEC2_NANO_DIGITS from nothing on generated speech, and print what its card says.

Type ``python scripts/train_nano_digits.py CORPUS_FOLDER``. It needs espeak-ng on PATH, an hour or two on
one core, and no network.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save
from spoken_digits import RATE, Speech, batches, espeak, kept, noisy, record, telephone
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchaudio.functional import edit_distance
from torchaudio.models import wav2vec2_model

WEIGHTS = Path(__file__).parent.parent / "src" / "bundles" / "weights" / "wav2vec2_nano_digits.safetensors"
LABELS = "-|ETONIHSRUWFGVXZ"  # torchaudio's order: blank, end of word, letters by how common they are
ARCHITECTURE: dict[str, Any] = {
    "extractor_mode": "layer_norm",  # unlike "group_norm" it does not hear the padding of a batch
    "extractor_conv_layer_config": [(32, 10, 5), (48, 3, 2), *[(64, 3, 2)] * 3, *[(64, 2, 2)] * 2],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 96,
    "encoder_projection_dropout": 0.05,
    "encoder_pos_conv_kernel": 32,
    "encoder_pos_conv_groups": 8,
    "encoder_num_layers": 4,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.05,
    "encoder_ff_interm_features": 256,
    "encoder_ff_interm_dropout": 0.05,
    "encoder_dropout": 0.05,
    "encoder_layer_norm_first": True,
    "encoder_layer_drop": 0.05,
    "aux_num_out": len(LABELS),
}
COUNTS = {"train": 16000, "valid": 300, "test": 1500}
BATCH = 60.0  # seconds
PEAK = 2e-3  # learning rate
NOISE = (5.0, 40.0)  # dB, in training
LOUD_NOISE = (5.0, 20.0)  # dB, in the test


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=WEIGHTS, show_default=False)
@click.option("--steps", default=3500, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, out: Path, steps: int, seed: int) -> None:
    """Generate the corpus in FOLDER, train, write the weights in half precision, and test those."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    speech = {split: kept(folder, split, count, seed) for split, count in COUNTS.items()}
    model = wav2vec2_model(**ARCHITECTURE)
    start = time.monotonic()
    train(model, speech, steps, seed, lambda: write(model, out))
    write(model, out)
    print(f"trained: {steps} steps, {(time.monotonic() - start) / 60:.0f} minutes")
    describe(out, speech)


def train(
    model: nn.Module, speech: dict[str, Speech], steps: int, seed: int, keep: Callable[[], None]
) -> None:
    """Minimise the CTC loss over recordings that are never the same twice."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps, pct_start=0.1)
    model.train()
    start = time.monotonic()
    for step, (waves, texts) in zip(range(steps), lessons(speech["train"], steps, seed), strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # most of the time goes into moving memory
            loss = ctc(model, waves, texts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - start:.0f} s", flush=True)
        if step % 500 == 499:
            report("valid", model, record_all(speech["valid"], None, seed), speech["valid"].texts)
            keep()


def lessons(speech: Speech, steps: int, seed: int) -> Iterator[tuple[list[torch.Tensor], list[str]]]:
    """Yield batches for ever: words alone or in pairs at first, from a tenth of the steps on everything."""
    draw = random.Random(seed)
    lengths = [len(wave) for wave in speech.waves]
    short = [i for i, text in enumerate(speech.texts) if text.count("|") < 2]
    done = 0
    while True:
        known = short if done < steps // 10 else range(len(speech))
        for cut in batches([lengths[i] for i in known], BATCH, draw):
            chosen = [known[i] for i in cut]
            yield [disturb(speech, i, draw) for i in chosen], [speech.texts[i] for i in chosen]
            done += 1
            if known is short and done >= steps // 10:
                break


def disturb(speech: Speech, index: int, draw: random.Random) -> torch.Tensor:
    """Record an utterance, one time in ten without noise, one time in four by telephone."""
    wave = speech.waves[index]
    quiet = draw.random() < 0.1
    heard = record(wave, None, 0.0, draw) if quiet else noisy(wave, speech, NOISE, draw)
    return telephone(heard) if draw.random() < 0.25 else heard


def record_all(speech: Speech, snr: tuple[float, float] | None, seed: int) -> list[torch.Tensor]:
    """Record a whole split, each time the same: clean, or over noise of the split's own voices."""
    draw = random.Random(seed)
    if snr is None:
        return [record(wave, None, 0.0, draw) for wave in speech.waves]
    return [noisy(wave, speech, snr, draw) for wave in speech.waves]


def pad(waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return waves as one batch, and their lengths."""
    return nn.utils.rnn.pad_sequence(list(waves), batch_first=True), torch.tensor([len(w) for w in waves])


def ctc(model: nn.Module, waves: list[torch.Tensor], texts: list[str]) -> torch.Tensor:
    """Return the loss of a batch."""
    emissions, frames = model(*pad(waves))
    targets = torch.tensor([LABELS.index(letter) for text in texts for letter in text])
    lengths = torch.tensor([len(text) for text in texts])
    return F.ctc_loss(emissions.float().log_softmax(-1).transpose(0, 1), targets, frames, lengths)


@torch.no_grad()
def transcribe(model: nn.Module, waves: Sequence[torch.Tensor]) -> list[str]:
    """Return the likeliest letters of each frame, repetitions and blanks dropped."""
    model.eval()
    texts = []
    for wave in waves:
        best = model(wave[None])[0][0].argmax(-1).unique_consecutive().tolist()
        texts.append("".join(LABELS[i] for i in best if i))
    return texts


def report(name: str, model: nn.Module, waves: Sequence[torch.Tensor], texts: Sequence[str]) -> None:
    """Print the share of letters and of words that are wrong, and of sequences that are not all right."""
    heard = transcribe(model, waves)
    letters = sum(edit_distance(a, b) for a, b in zip(texts, heard, strict=True)) / sum(map(len, texts))
    split = [(a.split("|"), b.strip("|").split("|")) for a, b in zip(texts, heard, strict=True)]
    words = sum(edit_distance(a, b) for a, b in split) / sum(len(a) for a, _ in split)
    wrong = sum(a != b for a, b in split) / len(split)
    print(f"{name}: CER {letters:.2%}, WER {words:.2%}, sequences wrong {wrong:.2%}", flush=True)
    model.train()


def write(model: nn.Module, out: Path) -> None:
    """Write the weights in half precision."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(save({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}))


def describe(out: Path, speech: dict[str, Speech]) -> None:
    """Read the written weights back, test them on voices that training never heard, and print it all."""
    model = wav2vec2_model(**ARCHITECTURE)
    model.load_state_dict(load_file(out))
    test = speech["test"]
    report("test, clean", model, record_all(test, None, 1), test.texts)
    report("test, telephone", model, [telephone(w) for w in record_all(test, None, 1)], test.texts)
    report(f"test, noise at {LOUD_NOISE} dB", model, record_all(test, LOUD_NOISE, 1), test.texts)
    for split, said in speech.items():
        variants = {voice.split("+")[1] for voice in said.voices}
        print(f"{split}: {len(said)} utterances, {said.seconds / 3600:.2f} h, {len(variants)} voices")
    print(f"num_parameters = {sum(p.numel() for p in model.parameters())}")
    print(f'weights.sha256 = "{hashlib.sha256(out.read_bytes()).hexdigest()}"')
    print(f"weights.size = {out.stat().st_size}")
    print(f"{espeak('--version').decode().split('  ')[0]}, torch {torch.__version__}, {RATE} Hz")


if __name__ == "__main__":
    main()
