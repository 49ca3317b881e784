"""What a batch costs and what it changes: features of eight inputs in batches, beside one by one.

Real sizes, random weights, one thread. Inputs of one length, and of eight; ``bound`` is the largest relative
difference between an input in a batch and alone, 0 where every bit is equal.

    python benchmarks/batching.py [FAMILY ...] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from interleaved import measure, report
from torch import Tensor, nn

import bundles
from bundles.display import text_table
from bundles.features.encode.encoder import Encoder

SECOND = 16_000
LENGTHS = (0.5, 0.6, 0.7, 0.7, 0.8, 0.9, 0.9, 1.0)  # seconds, or fractions of 64 tokens


def speech(name: str) -> tuple[nn.Module, Callable[[float], Tensor]]:
    """A speech encoder of torchaudio's, each waveform normalised for itself."""
    bundle = bundles.get_bundle(name)
    options = {"normalize": "per_utterance"} if bundle.architecture.get("normalize") else {}
    model = bundle.get_model(pretrained=False, freeze="all", freeze_mode="features", **options)
    return model, lambda length: torch.randn(int(length * SECOND))


def text(name: str) -> tuple[nn.Module, Callable[[float], Tensor]]:
    """A text encoder."""
    model = bundles.get_bundle(name).get_model(pretrained=False, freeze="all", freeze_mode="features")
    return model, lambda length: torch.randint(5, 1000, (int(length * 64),))


def image(name: str) -> tuple[nn.Module, Callable[[float], Tensor]]:
    """An image encoder; images have one size."""
    model = bundles.get_bundle(name).get_model(pretrained=False, freeze=True)
    return model, lambda length: torch.randn(3, 224, 224)


FAMILIES: dict[str, Callable[[str], tuple[nn.Module, Callable[[float], Tensor]]]] = {
    "WAV2VEC2_BASE": speech,
    "WAV2VEC2_NANO_DIGITS": speech,
    "WAVLM_LARGE": speech,
    "ROBERTA_BASE_ENCODER": text,
    "T5_SMALL_ENCODER": text,
    "VIT_B_16_IMAGENET1K_V1": image,
    "RESNET50_IMAGENET1K_V2": image,
}


def timed(encoder: Encoder, inputs: Sequence[Tensor]) -> float:
    """Return milliseconds of processor time: one thread computes, and others on the machine do not count."""
    start = time.process_time()
    encoder.encode(inputs)
    return (time.process_time() - start) * 1000


def main() -> None:
    """Measure each family, and print a table of bounds at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in args.families:
        model, make = FAMILIES[name](name)
        one_length, lengths = [make(0.7) for _ in LENGTHS], [make(length) for length in LENGTHS]
        alone, equal, padded = (Encoder(model, batch_size=size) for size in (1, 8, 8))
        rivals = {
            "one by one": lambda alone=alone, x=lengths: timed(alone, x),
            "batches of one length": lambda equal=equal, x=one_length: timed(equal, x),
            "batches of several": lambda padded=padded, x=lengths: timed(padded, x),
        }
        report(f"{name}, 8 inputs", measure(rivals, args.rounds), "ms", "one by one")
        rows.append((name, *("-" if e.bound is None else f"{e.bound:.1g}" for e in (equal, padded))))
    print(text_table(("bound", "#one length", "#several lengths"), rows))


if __name__ == "__main__":
    main()
