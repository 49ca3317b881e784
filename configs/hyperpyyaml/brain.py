"""Which German numeral is said: a new head on a frozen encoder, trained by SpeechBrain."""

import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from bundles.adapters.speechbrain import FreezeBrain
from bundles.demo.numerals import numerals


class Recogniser(FreezeBrain):
    """Counts what it gets right."""

    def compute_forward(self, batch, stage):
        """Return logits ``[batch, 5]`` for recordings ``[batch, samples]``."""
        return self.modules.model(batch[0].to(self.device))

    def compute_objectives(self, predictions, batch, stage):
        """Return the loss."""
        wanted = batch[1].to(self.device)
        self.hits += (predictions.argmax(-1) == wanted).sum().item()
        return cross_entropy(predictions, wanted)

    def on_stage_start(self, stage, epoch=None):
        """Count anew."""
        self.hits = 0

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Say how it goes, and save."""
        if stage is sb.Stage.VALID:
            print(f"epoch {epoch}: loss {stage_loss:.3f}, {self.hits} of 40 right")
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"])


if __name__ == "__main__":
    path, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with open(path) as file:
        hparams = load_hyperpyyaml(file, overrides)
    generator = torch.Generator().manual_seed(hparams["seed"])
    train = TensorDataset(*numerals("train", 70, generator))
    valid = TensorDataset(*numerals("test", 40, generator))
    brain = Recogniser(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        schedule=hparams["schedule"],
        delta=True,
    )
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs={"batch_size": hparams["batch_size"], "shuffle": True},
        valid_loader_kwargs={"batch_size": hparams["batch_size"]},
    )
