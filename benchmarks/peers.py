"""How others freeze a whole model: their own functions, called as their documentation calls them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as lightning
import timm.utils
import transformers as hf
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from pytorch_lightning.callbacks import BaseFinetuning
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

import bundles

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # whose models and checks are asked

from freeze_checks import Way

HEADS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    hf.Wav2Vec2Model: hf.Wav2Vec2ForSequenceClassification,
    hf.HubertModel: hf.HubertForSequenceClassification,
    hf.WavLMModel: hf.WavLMForSequenceClassification,
    hf.Wav2Vec2ConformerModel: hf.Wav2Vec2ConformerForSequenceClassification,
}


class NothingOfItsOwn(Exception):
    """The library has no freeze for this model."""


def train_all(model: nn.Module) -> None:
    """Undo as people do where nothing else is offered."""
    model.requires_grad_(True).train()


def ours(model: nn.Module) -> None:
    """Freeze with this library, its defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.NothingTrainableWarning)
        bundles.freeze(model, "all")


def habit(model: nn.Module) -> None:
    """Freeze as most scripts do; NeMo's ``freeze()`` comes to the same."""
    model.requires_grad_(False).eval()


def transformers_own(model: nn.Module) -> None:
    """``freeze_base_model`` of a classifier around the model, or what ``freeze_encoder`` of Whisper calls."""
    if isinstance(model, WhisperEncoder):
        model._freeze_parameters()
    elif type(model) in HEADS:
        classifier = HEADS[type(model)](model.config)
        setattr(classifier, classifier.base_model_prefix, model)
        classifier.freeze_base_model()
    else:
        raise NothingOfItsOwn


class _Holder(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def fastai_learner(model: nn.Module) -> Learner:
    """Return a learner of the model and a head, which are its two parameter groups."""
    body_and_head = nn.Sequential(model, nn.Linear(1, 1))
    return Learner(
        DataLoaders([], []),
        body_and_head,
        loss_func=nn.MSELoss(),
        splitter=lambda parts: [list(part.parameters()) for part in parts],
    )


def finetuning(train_bn: bool) -> Way:
    """Return the way of Lightning's callback."""
    return Way(lambda model: BaseFinetuning.freeze(model, train_bn=train_bn), BaseFinetuning.make_trainable)


WAYS: dict[str, Way] = {
    "`bundles.freeze`": Way(ours, bundles.unfreeze),
    "`requires_grad_(False)` and `eval()` once": Way(habit, train_all),
    "`timm.utils.freeze`": Way(timm.utils.freeze, timm.utils.unfreeze),
    "transformers' `freeze_base_model`, `freeze_encoder`": Way(transformers_own, train_all),
    "`LightningModule.freeze`": Way(
        lambda model: _Holder(model).freeze(), lambda model: _Holder(model).unfreeze()
    ),
    "Lightning's `BaseFinetuning.freeze(train_bn=True)`": finetuning(train_bn=True),
    "Lightning's `BaseFinetuning.freeze(train_bn=False)`": finetuning(train_bn=False),
    "fastai's `Learner.freeze`": Way(
        lambda model: fastai_learner(model).freeze(), lambda model: fastai_learner(model).unfreeze()
    ),
    "NeMo's `freeze`, its rule restated": Way(habit, train_all),
}
