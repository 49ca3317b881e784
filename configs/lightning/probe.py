"""A module of Lightning around a pretrained encoder, which its config describes as plain data."""

from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bundles


class Probe(LightningModule):
    """Classify what is said.

    Args:
        model: a mapping for ``bundles.from_config``, or the name of a bundle.
        lr: of the tensors that train.
    """

    def __init__(self, model: dict[str, Any] | str, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Lightning leaves the mode as it is; what is frozen keeps its own.
        self.model = bundles.from_config(model).train()
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of waveforms, ``[batch, samples]``, and classes, ``[batch]``."""
        waves, classes = batch
        return nn.functional.cross_entropy(self.model(waves), classes)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over what the plan leaves to train."""
        return torch.optim.AdamW(bundles.param_groups(self.model, lr=self.lr))


class Noise(LightningDataModule):
    """Eight waveforms of noise, in the place of data."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return two batches."""
        waves, classes = torch.randn(8, 4000), torch.randint(0, 11, (8,))
        return DataLoader(TensorDataset(waves, classes), batch_size=4)
