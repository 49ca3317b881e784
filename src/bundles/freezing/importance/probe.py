"""What scoring asks of a model: the gradients of a batch, and sums per tensor, group or unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - what everybody calls it
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bundles.errors import FreezeArgumentError
from bundles.spec.scores import Per
from bundles.spec.values import shown

Loss = Callable[[nn.Module, Any], Tensor]
Table = dict[str, Tensor]  # name -> float64 of shape (1,), or (units,)


@dataclass(frozen=True)
class Parts:
    """Adds up the elements of tensors over the parts that are scored."""

    per: Per
    group_of: Mapping[str, str]

    def sums(self, tensors: Iterable[tuple[str, Tensor]]) -> Table:
        """Return the sum over each part."""
        found: Table = {}
        for name, tensor in tensors:
            total = self._rows(tensor).sum(1).cpu().double()
            key = self.key(name)
            found[key] = found[key] + total if key in found else total
        return found

    def norms(self, tensors: Mapping[str, Tensor]) -> Table:
        """Return the Euclidean norm of each part."""
        return {key: total.sqrt() for key, total in self.sums(_squares(tensors)).items()}

    def means(self, tensors: Mapping[str, Tensor]) -> Table:
        """Return the mean over the elements of each part."""
        counts = self.sums((name, torch.ones_like(tensor)) for name, tensor in tensors.items())
        return {key: total / counts[key] for key, total in self.sums(tensors.items()).items()}

    def key(self, name: str) -> str:
        """Return the name under which a parameter is scored."""
        return self.group_of[name] if self.per == "group" else name

    def _rows(self, tensor: Tensor) -> Tensor:
        units = tensor.shape[0] if self.per == "unit" and tensor.ndim else 1
        return wide(tensor).reshape(units, -1)


@dataclass(frozen=True)
class Probe:
    """A model that is lent for scoring, and what is done with it.

    Attributes:
        model: thawed, in the mode that is wanted.
        parameters: those that are scored, tied ones once.
        data: the batches.
        loss: model and batch -> scalar.
        parts: what gets a score.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    data: Iterable[Any]
    loss: Loss | None
    parts: Parts

    def batches(self) -> Iterator[Any]:
        """Yield the batches, on the device of the model.

        Raises:
            FreezeArgumentError: there is none, or ``data`` is no iterable of them.
        """
        if isinstance(self.data, Tensor) or not isinstance(self.data, Iterable):
            raise FreezeArgumentError(
                f"data= is a {type(self.data).__name__}: give an iterable of batches, as a DataLoader or "
                f"[(inputs, targets)]."
            )
        device, empty = next(iter(self.parameters.values())).device, True
        for batch in self.data:
            empty = False
            yield _mapped(lambda tensor: tensor.to(device), batch)
        if empty:
            raise FreezeArgumentError(
                "data= gave no batch: give an iterable of (inputs, targets), fresh where it was a generator."
            )

    def examples(self) -> Iterator[Any]:
        """Yield batches of one, by dimension 0 of every tensor.

        Raises:
            FreezeArgumentError: the tensors of a batch differ in dimension 0.
        """
        for batch in self.batches():
            sizes = {leaf.shape[:1] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}
            if len(sizes) != 1:
                raise FreezeArgumentError(
                    f"A batch cannot be taken apart into examples: its tensors have "
                    f"{sorted(size[0] for size in sizes)} as dimension 0, expected is the number of examples."
                )
            for index in range(sizes.pop()[0]):
                yield _mapped(partial(_example, index=index), batch)

    def gradients(self, batch: Any) -> dict[str, Tensor]:
        """Return the gradient of the loss in every parameter; zeros where the loss does not reach."""
        loss = (self.loss or usual_loss)(self.model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise FreezeArgumentError(
                f"The loss is {shown(loss)}, expected is one number that depends on parameters that train: "
                f"loss=lambda model, batch: ..., with the model that it is given."
            )
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        if all(gradient is None for gradient in found):
            raise FreezeArgumentError(
                "The loss reaches no parameter that is scored: compute it with the model that loss= is given."
            )
        return {
            name: torch.zeros_like(wide(parameter)) if gradient is None else wide(gradient)
            for (name, parameter), gradient in zip(self.parameters.items(), found, strict=True)
        }


def limited(data: Iterable[Any], batches: int | None) -> Iterable[Any]:
    """Return the first batches.

    Raises:
        FreezeArgumentError: ``batches`` is no number from 1.
    """
    if batches is not None and (type(batches) is not int or batches < 1):
        raise FreezeArgumentError(f"batches={shown(batches)} is not a number of batches from 1, or None.")
    return data if batches is None else islice(data, batches)


def usual_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of ``(inputs, targets)``, or what ``model(**batch)`` itself calls its loss.

    Targets of integers mean cross-entropy, others the mean squared error.
    """
    if isinstance(batch, Mapping):
        loss: Tensor | None = getattr(model(**batch), "loss", None)
    else:
        inputs, targets = pair(batch)
        outputs = model(inputs)
        measure = F.mse_loss if targets.is_floating_point() else F.cross_entropy
        loss = measure(outputs, targets) if isinstance(outputs, Tensor) else None
    if loss is None:
        raise FreezeArgumentError(
            "The model's output does not tell a loss: give loss=lambda model, batch: ..., which returns it."
        )
    return loss


def pair(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and targets.

    Raises:
        FreezeArgumentError: the batch is no such pair.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    raise FreezeArgumentError(
        f"A batch is {shown(type(batch).__name__)}, expected is (inputs, targets): give "
        f"loss=lambda model, batch: ... for any other."
    )


def wide(tensor: Tensor) -> Tensor:
    """Return a dense, real tensor of float32 or more, so that squares of half precision do not vanish."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    dense = torch.view_as_real(dense) if dense.is_complex() else dense
    return dense.to(torch.promote_types(dense.dtype, torch.float32))


def _squares(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, wide(tensor).square()) for name, tensor in tensors.items())


def _example(tensor: Tensor, index: int) -> Tensor:
    return tensor[index : index + 1] if tensor.ndim else tensor


def _mapped(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    plain = dict(batch) if isinstance(batch, Mapping) else batch
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, plain)
