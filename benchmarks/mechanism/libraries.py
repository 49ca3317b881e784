"""Rows about other libraries: transformers, PEFT, Lightning, quantisation, parametrizations."""

from __future__ import annotations

import copy
import logging
import tempfile

import pytorch_lightning as lightning
import torch
import transformers as hf
from parts import Mechanism, batch, call, contents, fresh, stays
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

TOKENS = torch.arange(24).reshape(2, 12)


def _bert() -> hf.BertForSequenceClassification:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(1)
    return hf.BertForSequenceClassification(hf.BertConfig(vocab_size=99, **size)).train()


def _frozen_bert(mechanism: Mechanism) -> hf.BertForSequenceClassification:
    model = _bert()
    mechanism.freeze(model, "bert")
    return model.train()


def _hidden(model: nn.Module, seed: int) -> Tensor:
    torch.manual_seed(seed)
    made: Tensor = model(TOKENS).last_hidden_state
    return made


def bert(mechanism: Mechanism) -> bool:
    """Hugging Face BERT deterministic after `train()`."""
    model = _frozen_bert(mechanism)
    return torch.equal(_hidden(model.bert, 1), _hidden(model.bert, 2))


def _saves(model: hf.PreTrainedModel, kind: type[hf.PreTrainedModel]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = kind.from_pretrained(folder)
    pairs = zip(model.state_dict().items(), again.state_dict().items(), strict=True)
    equal = all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    return equal and again.config.architectures == [kind.__name__]


def saves_with_frozen_base(mechanism: Mechanism) -> bool:
    """Hugging Face `save_pretrained` and `from_pretrained`, frozen base in a model with a head."""
    return _saves(_frozen_bert(mechanism), hf.BertForSequenceClassification)


def saves_with_frozen_root(mechanism: Mechanism) -> bool:
    """Hugging Face `save_pretrained` and `from_pretrained`, frozen root."""
    model = hf.BertModel(_bert().config).train()
    mechanism.freeze(model, "")
    return _saves(model, hf.BertModel)


def checkpointing(mechanism: Mechanism) -> bool:
    """Hugging Face gradient checkpointing with a frozen base."""
    model = _frozen_bert(mechanism)
    model.gradient_checkpointing_enable()
    model(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
    return model.classifier.weight.grad is not None and model.bert.pooler.dense.weight.grad is None


def peft(mechanism: Mechanism) -> bool:
    """PEFT after the freeze: LoRA's dropout follows `train()`, noise of the base is off."""
    config = LoraConfig(target_modules=["query", "value"], lora_dropout=0.5)
    model = get_peft_model(_frozen_bert(mechanism), config)
    layer = model.base_model.model.bert.encoder.layer[0]
    lora, base = layer.attention.self.query.lora_dropout["default"], layer.output.dropout
    model.eval()
    off = not lora.training
    model.train()
    return off and lora.training and not base.training


class _Fit(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, []

    def training_step(self, x: list[Tensor], index: int) -> Tensor:
        """Train the head, and look whether the encoder stays."""
        self.seen.append(stays(self.model.encoder))
        return self.model(batch()).square().sum()

    def validation_step(self, x: list[Tensor], index: int) -> None:
        """Only so that there is a validation."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Decay that would move what is not frozen."""
        return torch.optim.AdamW(self.parameters(), weight_decay=0.3)


def fit(mechanism: Mechanism) -> bool:
    """Lightning: `train()`, then fit with validation."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(batch()), batch_size=3)
    module = _Fit(mechanism.frozen()).train()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, data, data)
    return len(module.seen) == 4 and all(module.seen)


def quantized(mechanism: Mechanism) -> bool:
    """quantize_dynamic (dispatches on exact types)."""
    model = quantize_dynamic(mechanism.frozen().eval(), {nn.Linear}, dtype=torch.qint8)
    return sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 4


def parametrization_removed(mechanism: Mechanism) -> bool:
    """remove_parametrizations on a module parametrised before the freeze."""
    model = fresh()
    weight_norm(model.encoder.blocks[0].linear)
    mechanism.freeze(model, "encoder")
    linear = remove_parametrizations(model.encoder.blocks[0].linear, "weight")
    return type(linear) is nn.Linear


def parametrization_copied(mechanism: Mechanism) -> bool:
    """Deepcopy with a parametrization inside."""
    model = fresh()
    spectral_norm(model.encoder.blocks[0].linear)
    mechanism.freeze(model, "encoder")
    twin = copy.deepcopy(model.train()).train().encoder
    before = contents(twin)
    return torch.equal(call(twin, 1), call(twin, 2)) and contents(twin) == before
