"""Speech enhancement trained through a frozen recogniser: pytorch/audio#1995, the second use.

    python scripts/recipes/enhancement.py
    python scripts/recipes/enhancement.py --bundle CREPE_TINY
    python scripts/recipes/enhancement.py --bundle HUBERT_BASE --data clean_speech --epochs 50

A front-end masks a noisy spectrogram, so that the frozen recogniser says of its output what it says of clean
speech. Gradient flows through the recogniser, and none of its weights moves. What its batch norm does is a
choice: ``"eval"`` holds the statistics, and an input is answered the same in any batch; ``"frontend"`` lets
them follow what the front-end makes. The recipe trains with both and shows what each keeps.

Yours is a folder of clean speech; noise is added here. The bundle takes waveforms, or frames as CREPE does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from recipe_data import RATE, SOUNDS, at_least_one, batches, chunks, split, start, waveforms, write_speech
from torch import nn

import bundles


class FrontEnd(nn.Module):
    """A mask over the spectrogram, from three convolutions over time: ``[batch, samples]`` to the same."""

    def __init__(self, window: int = 256, hidden: int = 96) -> None:
        super().__init__()
        bins = window // 2 + 1
        self.register_buffer("window", torch.hann_window(window))
        self.mask = nn.Sequential(
            nn.Conv1d(bins, hidden, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(hidden, hidden, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(hidden, bins, 5, padding=2),
        )
        nn.init.constant_(self.mask[-1].bias, 3.0)  # at first nearly everything passes

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        """Return ``[batch, samples]``."""
        size = len(self.window)
        spectrum = torch.stft(noisy, size, size // 4, window=self.window, return_complex=True)
        mask = self.mask((spectrum.abs() + 1e-3).log()).sigmoid()
        return torch.istft(spectrum * mask, size, size // 4, window=self.window, length=noisy.shape[-1])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="WAV2VEC2_NANO_DIGITS")
    parser.add_argument("--data", type=Path, help="a folder of clean speech")
    parser.add_argument("--epochs", type=at_least_one, default=8)
    parser.add_argument("--batch-size", type=at_least_one, default=8)
    parser.add_argument("--threads", type=at_least_one, default=1, help="enough for the small model")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--pieces", type=at_least_one, default=128, help="how many at most, to train on and to test"
    )
    parser.add_argument("--snr", type=float, default=3.0, help="how far noise is below speech, in dB")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a front-end with either choice of batch norm."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    bundle = bundles.get_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            options.data = Path(scratch) / "speech"
            write_speech(options.data)
        paths = sorted(path for path in options.data.rglob("*") if path.suffix.lower() in SOUNDS)
        if not paths:
            raise SystemExit(f"{options.data} is no folder of files {', '.join(SOUNDS)}: give one.")
        waves = open_speech(bundle, paths)
    train, test = split(len(waves))
    size = bundle.metadata.get("frame_length")  # of CREPE; speech recognisers hear a quarter of a second
    clean = [pieces([waves[index] for index in part], size or RATE // 4) for part in (train, test)]
    clean = [part[: options.pieces] for part in clean]
    if not all(map(len, clean)):
        raise SystemExit(
            f"The {len(paths)} files of {options.data} hold too little speech to train on and to test."
        )
    print(f"{bundle.name}: {len(clean[0])} pieces to train on, {len(clean[1])} to test")
    for mode in ("eval", "frontend"):
        run(bundle, mode, *clean, options)


def open_speech(bundle: bundles.Bundle, paths: list[Path]) -> list[torch.Tensor]:
    """The waves of files; a bundle that takes frames is given frames of them later."""
    known = bundle if bundle.metadata.get("frame_length") is None else bundles.WAV2VEC2_NANO_DIGITS
    return waveforms(known, paths)


def run(
    bundle: bundles.Bundle, mode: str, train: torch.Tensor, test: torch.Tensor, options: argparse.Namespace
) -> None:
    """Train a front-end through the recogniser in one mode, and print what came of it."""
    torch.manual_seed(0)
    recogniser, front_end = bundle.get_model(), FrontEnd()
    model = nn.Sequential(OrderedDict(front_end=front_end, recogniser=recogniser))
    bundles.freeze(model, "match:recogniser", mode)
    taken, buffers = bundles.snapshot(model), values(recogniser)
    optimizer = torch.optim.AdamW(bundles.param_groups(model, lr=options.lr))
    wanted, right = answers(recogniser, train), answers(recogniser, test)  # of clean speech, once
    noisy = add_noise(test, options.snr)
    before = compare(answers(recogniser, noisy), right)
    for _ in range(options.epochs):
        model.train()
        for chosen in batches(range(len(train)), options.batch_size):
            heard = answer(model, add_noise(train[chosen], options.snr))
            loss = nn.functional.mse_loss(heard, wanted[chosen])
            optimizer.zero_grad()
            loss.backward()  # through the recogniser
            optimizer.step()
    gradient = sum(p.grad.norm() ** 2 for p in front_end.parameters()) ** 0.5
    bundles.verify_frozen(model, taken)
    model.eval()
    after = compare(answers(model, noisy), right)
    model.train()
    with torch.no_grad():
        alone, together = answer(recogniser, test[:1]), answer(recogniser, test[:8])[:1]
    moved = sum(not torch.equal(buffers[name], now) for name, now in values(recogniser).items())
    print(f"mode {mode!r} before: {before}; after: {after}")
    print(f"  gradient at the front-end {gradient:.2g}; frozen bytes are equal: {len(taken)} tensors")
    print(
        f"  statistics that moved: {moved}; in train() a piece is answered alone as in a batch: "
        f"{torch.allclose(alone, together, atol=1e-4)}"
    )


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the buffers, by name."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def answer(model: nn.Module, waves: torch.Tensor) -> torch.Tensor:
    """What it says of each frame, ``[..., labels]``; torchaudio's models return lengths beside it."""
    out: Any = model(waves)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def answers(model: nn.Module, waves: torch.Tensor) -> torch.Tensor:
    """The same of many, without a gradient."""
    return torch.cat([answer(model, waves[chosen]) for chosen in chunks(range(len(waves)), 16)])


def compare(said: torch.Tensor, right: torch.Tensor) -> str:
    """How far from what is said of clean speech, and the share of frames with the same likeliest label."""
    same = (said.argmax(-1) == right.argmax(-1)).float().mean().item()
    return f"distance {nn.functional.mse_loss(said, right).item():.3g}, same label {same:.3f}"


def pieces(waves: list[torch.Tensor], size: int) -> torch.Tensor:
    """Speech cut into pieces of one size and loudness, ``[pieces, size]``, without those that are silent."""
    cut = torch.cat([wave[: len(wave) // size * size].reshape(-1, size) for wave in waves])
    cut = cut[cut.std(1) > 0.02]
    return (cut - cut.mean(1, keepdim=True)) / cut.std(1, keepdim=True)


def add_noise(clean: torch.Tensor, snr: float) -> torch.Tensor:
    """White noise over speech of unit loudness."""
    return clean + torch.randn_like(clean) * 10 ** (-snr / 20)


if __name__ == "__main__":
    start(main)
