"""Compute features of inputs in batches whose results are those of each input alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bundles.errors import BundlesError, FeatureError, InputError, NotDeterministicError
from bundles.features.encode.batches import cut, make_batches, most_padded
from bundles.features.encode.call import call, frames_of, way_of
from bundles.features.encode.capture import Capture, Captured, evaluating, second_tensor
from bundles.features.encode.deterministic import check_deterministic
from bundles.features.encode.layers import Anatomy, extractor_of
from bundles.features.encode.trial import Features, Sharing, distance, first_random, tolerance, try_sharing
from bundles.freezing.derive import inside
from bundles.spec.values import shown

_FRAMES = 256  # of CREPE's that share a call: a megabyte of samples, and a quarter GiB in CREPE_FULL
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)


class Encoder:
    """A model as that which gives features of inputs, by layer.

    Inputs of a call are put into batches by their length. Where the model does not mask what is padded, as
    wav2vec 2.0 with a ``GroupNorm`` over time, only equal lengths share one. Of a model of no library that is
    known it is tried on noise, once, whether several inputs, and several lengths, may share a batch.

    CREPE is given one input at a time, 256 of its frames in a call.

    Args:
        model: any module; it is moved to ``device``, and is in ``eval()`` while it encodes.
        layers: numbers of blocks from 0, as ``[6, -1]``, or ``"block.6"``; ``"output"`` is what the head is
            given, and without a head what the model returns, which ``None`` stands for.
        batch_size: the most inputs that share a call.
        dtype: of the features.
        device: where they are computed; they are returned on the CPU.

    Raises:
        NotDeterministicError: as :func:`bundles.features.encode.deterministic.check_deterministic`.
        FreezeArgumentError: the model has no such layer.
        FeatureError: the model has no values yet, ``dtype`` is none for features, or ``batch_size`` is no
            positive number.

    >>> import torch
    >>> encoder = Encoder(torch.nn.Linear(2, 3), dtype=torch.float32)
    >>> [features["output"].shape for features in encoder.encode([torch.ones(5, 2), torch.ones(4, 2)])]
    [torch.Size([5, 3]), torch.Size([4, 3])]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[int | str] | None = None,
        batch_size: int = 8,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
    ) -> None:
        _check(model, batch_size, dtype)
        check_deterministic(model, layers, batch_size)
        anatomy = Anatomy(inside(model).to(device))
        self._model, self._encoder = anatomy.model, anatomy.modules[anatomy.encoder]
        self._layers = anatomy.layers(layers)
        self._way = way_of(self._encoder)
        extractor = extractor_of(self._encoder) if self._way.known else None
        self._capture = Capture(anatomy.modules, self._layers, extractor)
        self._batch_size, self._dtype, self._device = batch_size, dtype, torch.device(device)
        self._sharing = Sharing(self._way.takes != "frames", self._way.pads) if self._way.known else None
        dtypes = {p.dtype for p in self._encoder.parameters() if p.is_floating_point()}
        self._computes_in = dtypes.pop() if len(dtypes) == 1 else None
        self._stops = False  # until a whole call has shown that no layer is computed twice
        self._bound: float | None = 0.0 if batch_size == 1 else None
        self._measured_padding = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of the model."""
        return tuple(layer.name for layer in self._layers)

    @property
    def kind(self) -> str:
        """How the model is called, see :class:`bundles.features.encode.call.Way`."""
        return self._way.takes

    @property
    def bound(self) -> float | None:
        """The largest relative difference between features of an input in a batch and alone.

        It is measured in the first batch of several inputs, and in the first that is padded: of a call of
        :meth:`encode` the one that has most padding. 0.0 where every bit is equal; ``None`` before that.
        """
        return self._bound

    def encode(self, inputs: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the features of each input by layer, on the CPU, in the order of the inputs.

        They are computed in the dtype that the model has: ``torch.autocast`` around this has no effect.

        Args:
            inputs: without batch dimension: ``[samples]``, ``[tokens]``, ``[channels, height, width]``,
                ``[frames, size]``.

        Returns:
            For each input a tensor per layer, ``[frames, *features]`` without padding, or ``[features]``
            where the model pools.

        Raises:
            InputError: the model does not take an input.
            NotDeterministicError: the model gives something else in a second call, or in a batch.
            FeatureError: a layer is not called, has no row for each input, or does not fit the ``dtype``.
        """
        tensors = [self._prepared(tensor) for tensor in inputs]
        results: list[dict[str, Tensor]] = [{} for _ in tensors]
        if not tensors:
            return results
        plain = torch.autocast(self._device.type, enabled=False), torch.inference_mode(False)
        with evaluating(self._model), plain[0], plain[1]:
            sharing = self._sharing = self._sharing or self._try(tensors[0])
            if not sharing.stacks:
                self._bound = 0.0
            batches = make_batches(tensors, self._batch_size, sharing)
            tested = self._untested(tensors, batches)
            for batch in batches:
                features = self._run([tensors[index] for index in batch], sharing.framed)
                if batch is tested:
                    self._measure([tensors[index] for index in batch], features)
                for index, found in zip(batch, features, strict=True):
                    results[index] = {name: self._stored(name, values) for name, values in found.items()}
        return results

    def _prepared(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"The encoder takes tensors without a batch dimension, not a {type(tensor).__name__}."
            )
        dtype = self._computes_in if tensor.is_floating_point() else None
        is_frame = self._way.known and self._way.takes == "frames" and tensor.ndim == 1
        return (tensor[None] if is_frame else tensor).detach().to(self._device, dtype or tensor.dtype)

    def _try(self, example: Tensor) -> Sharing:
        """Find out what may share a call, of a model that may not even be the same each time."""
        one, other = self._run([example]), self._run([example])
        if distance(one[0], other[0]) > (0.0 if self._device.type == "cpu" else tolerance(one[0])):
            self._stops = False
            name = first_random(self._model, lambda: self._run([example]))
            raise NotDeterministicError(
                f"{name or type(self._encoder).__name__} gives something else in a second call for the same "
                f"input, in eval(), too: make it deterministic, or ask for layers= in front of it.",
                modules=() if name is None else (name,),
            )
        return try_sharing(self._run, example) if self._batch_size > 1 else Sharing(False, False)

    def _untested(
        self, inputs: Sequence[Tensor], batches: Sequence[tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """Return the batch that is to be compared with its inputs alone, if one is."""
        batch = most_padded(inputs, batches)
        if batch is None:
            return None
        padded = len({inputs[index].shape for index in batch}) > 1
        if self._bound is not None and (self._measured_padding or not padded):
            return None
        self._measured_padding = padded
        return batch

    def _measure(self, inputs: Sequence[Tensor], features: Sequence[Features]) -> None:
        """Measure how far the features of each input of a batch are from those of the input alone."""
        alone = (self._run([tensor])[0] for tensor in inputs)
        self._bound = max(self._bound or 0.0, *map(distance, features, alone))
        if self._bound > tolerance(features[0]):
            raise NotDeterministicError(
                f"In a batch of {len(inputs)} an input's features differ by {self._bound:.1g} of the largest "
                f"from those of the input alone: pass batch_size=1.",
                modules=("",),
            )

    def _run(self, batch: Sequence[Tensor], framed: frozenset[str] | None = None) -> list[Features]:
        """Return the features of each input of a batch as the model computes them, without padding."""
        if self._way.takes == "frames" and batch[0].shape[:1] > (_FRAMES,):
            pieces = [self._run([piece])[0] for piece in torch.split(batch[0], _FRAMES)]
            return [{name: torch.cat([piece[name] for piece in pieces]) for name in self.layers}]
        seen, frames = self._call(batch)
        if self._way.takes == "frames":
            return [seen.values]
        for name, values in seen.values.items():
            if values.shape[:1] != (len(batch),):
                raise FeatureError(
                    f"{name} is of shape {list(values.shape)} for {len(batch)} inputs: the first dimension "
                    f"has to be the batch."
                )
        return [cut(seen.values, row, frames, framed) for row in range(len(batch))]

    @torch.no_grad()
    def _call(self, batch: Sequence[Tensor]) -> tuple[Captured, list[int] | None]:
        """Call the model, and return what was seen and how many frames each input has, if not all.

        Not in ``inference_mode``, which is no faster here: a table of positions that a model makes in its
        first call and keeps could then not be trained through.
        """
        try:
            seen, result = self._capture.run(lambda: call(self._encoder, self._way, batch), stop=self._stops)
        except _REFUSALS as error:
            if isinstance(error, BundlesError | torch.OutOfMemoryError):
                raise
            shapes = sorted({tuple(tensor.shape) for tensor in batch})
            raise InputError(
                f"The {type(self._encoder).__name__} does not take inputs of shape "
                f"{', '.join(str(list(shape)) for shape in shapes)}, so mend it or leave it out: {error}"
            ) from error
        needs_end = self._way.takes == "lengths" and not self._way.known
        self._stops = not needs_end and max(seen.calls.values()) == 1
        lengths = [len(tensor) for tensor in batch] if batch[0].ndim else []
        if len(set(lengths)) < 2:
            return seen, None
        returned = second_tensor(result) if seen.lengths is None else seen.lengths
        return seen, frames_of(self._encoder, self._way, lengths, returned)

    def _stored(self, name: str, values: Tensor) -> Tensor:
        """Return values as they are stored; a copy, since the batch would live on in a view of it."""
        if not values.is_floating_point():
            raise FeatureError(
                f"{name} holds {values.dtype} numbers, and features are floats: ask for other layers."
            )
        if values.isnan().any():
            raise InputError(f"{name} has numbers that are not a number (NaN) for this input.")
        stored = values.to("cpu", self._dtype, copy=True)
        if not stored.isfinite().all() and values.isfinite().all():
            raise FeatureError(
                f"{name} has values up to {float(values.abs().max()):.3g}, which {self._dtype} does not "
                f"hold: pass dtype='bfloat16' or 'float32'."
            )
        return stored


def _check(model: nn.Module, batch_size: int, dtype: torch.dtype) -> None:
    if any(parameter.is_meta for parameter in inside(model).parameters()):
        raise FeatureError("The model is on the meta device and has no values yet: load its weights first.")
    if type(batch_size) is not int or batch_size < 1:
        raise FeatureError(f"batch_size={shown(batch_size)} is no number of inputs: give 1 or more.")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise FeatureError(
            f"dtype={shown(dtype)} is none that features are stored in: give torch.float16, torch.bfloat16 "
            f"or torch.float32."
        )
