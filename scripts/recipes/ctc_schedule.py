"""CTC fine-tuning of wav2vec 2.0: the head first, then more from the top; the feature extractor never.

    python scripts/recipes/ctc_schedule.py
    python scripts/recipes/ctc_schedule.py --bundle WAV2VEC2_BASE --data texts.tsv --epochs 30 --lr 1e-4

Without ``--data`` it learns to spell five German numerals, with an encoder that knows English digits. Yours
is a file of lines ``path <tab> text``. The bundle is one of torchaudio's ``WAV2VEC2_*``, ``HUBERT_*`` or
``WAVLM_*``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from recipe_data import at_least_one, batches, split, start, table, waveforms, write_numerals
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import edit_distance

import bundles
from bundles.heads import CTCHead


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="WAV2VEC2_NANO_DIGITS")
    parser.add_argument("--data", type=Path, help="a file of lines: path, tab, text")
    parser.add_argument("--test", type=Path, help="another one to test on; a fifth of the first without it")
    parser.add_argument("--epochs", type=at_least_one, default=12)
    parser.add_argument("--batch-size", type=at_least_one, default=16)
    parser.add_argument("--threads", type=at_least_one, default=1, help="enough for the small model")
    parser.add_argument("--lr", type=float, default=2e-3)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, and print the share of wrong letters before and after."""
    options = parse(arguments)
    if options.epochs < 3:
        raise SystemExit(f"--epochs {options.epochs} is too few for three steps: give 3 or more.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    bundle = bundles.get_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            options.data = write_numerals(Path(scratch) / "train", 160) / "texts.tsv"
            options.test = write_numerals(Path(scratch) / "test", 40, "test") / "texts.tsv"
        rows = table(options.data)
        if options.test is None:
            train, test = split(len(rows))
        else:
            train, rows = [*range(len(rows))], rows + table(options.test)
            test = [*range(len(train), len(rows))]
        waves = waveforms(bundle, [Path(path) for path, _ in rows])
    texts = [text for _, text in rows]
    letters = sorted(set("".join(texts[index] for index in train)))
    if unknown := sorted(set("".join(texts[index] for index in test)) - {*letters}):
        raise SystemExit(f"No text to train on has the letters {unknown} of those to test: leave these out.")

    model = bundle.get_model(freeze="feature_extractor", head=lambda size: CTCHead(size, len(letters) + 1))
    check(model, waves, rows)
    never = bundles.snapshot(model)  # the feature extractor is frozen from the first epoch to the last
    optimizer = torch.optim.AdamW(bundles.param_groups(model, lr=options.lr, layer_decay=0.8))
    schedule = bundles.UnfreezeSchedule(
        {0: "encoder", options.epochs // 3: "last:2", 2 * options.epochs // 3: "feature_extractor"}
    )
    print(f"letter errors before: {errors(model, waves, texts, letters, test):.3f}")
    taken = never
    for epoch in range(options.epochs):
        if schedule.apply(model, epoch, optimizer=optimizer):
            taken = bundles.snapshot(model)
        loss = fit(model, optimizer, waves, texts, letters, train, options.batch_size)
        bundles.verify_frozen(model, taken)
        print(f"epoch {epoch}: {schedule.text_at(epoch)}, {len(taken)} tensors frozen, loss {loss:.3f}")
    print(f"letter errors after: {errors(model, waves, texts, letters, test):.3f}")
    bundles.verify_frozen(model, never)
    print(f"frozen bytes are equal: {len(never)} tensors of the feature extractor")


@torch.no_grad()
def check(model: nn.Module, waves: list[torch.Tensor], rows: list[tuple[str, str]]) -> None:
    """Refuse what has no finite loss: CTC needs a frame for each letter, and one between two equal ones."""
    lengths = torch.tensor(list(map(len, waves)))
    _, frames = model.feature_extractor(torch.zeros(1, 2000), lengths)  # they follow from the lengths alone
    for (path, text), has in zip(rows, frames.tolist(), strict=True):
        needs = len(text) + sum(map(str.__eq__, text, text[1:]))
        if has < needs:
            raise SystemExit(f"{path} has {has} frames, and {text[:40]!r} needs {needs}: leave it out.")


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    waves: list[torch.Tensor],
    texts: list[str],
    letters: list[str],
    train: list[int],
    size: int,
) -> float:
    """One epoch; return the mean loss."""
    model.train()  # what is frozen stays in eval mode
    losses = []
    for chosen in batches(train, size):
        lengths = torch.tensor([len(waves[index]) for index in chosen])
        logits, frames = model(pad_sequence([waves[index] for index in chosen], batch_first=True), lengths)
        spelt = [torch.tensor([letters.index(letter) + 1 for letter in texts[index]]) for index in chosen]
        loss = nn.functional.ctc_loss(
            logits.log_softmax(2).transpose(0, 1),
            torch.cat(spelt),
            frames,
            torch.tensor(list(map(len, spelt))),
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def errors(
    model: nn.Module, waves: list[torch.Tensor], texts: list[str], letters: list[str], test: list[int]
) -> float:
    """Wrong, missing and superfluous letters, by the number of letters that were said."""
    model.eval()
    wrong = 0
    for index in test:
        best = model(waves[index][None])[0][0].argmax(-1).unique_consecutive().tolist()
        wrong += edit_distance("".join(letters[label - 1] for label in best if label), texts[index])
    return wrong / sum(len(texts[index]) for index in test)


if __name__ == "__main__":
    start(main)
