"""Cut a rank's own part out of a whole tensor: by the layout torch gave the model, and without a message."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from bundles.errors import BuildError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is spread over a device mesh; importing that half of torch takes half a second."""
    distributed: Any = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def shard(tensor: torch.Tensor, like: DTensor, *, copy: bool = False) -> DTensor:
    """Return a whole tensor spread as another one is, in its dtype, on its mesh.

    Every rank has the whole tensor, as a map of a file, and reads no more of it than its own part.

    Args:
        tensor: of the global shape.
        like: says mesh and placements; it may be on the meta device.
        copy: whether the part gets memory of its own; else it stays a view where nothing is converted.
    """
    from torch.distributed.tensor import DTensor

    part = _part(tensor.detach(), like)
    part = part.to(device=like.device_mesh.device_type, dtype=like.dtype, copy=copy).contiguous()
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _part(tensor: torch.Tensor, like: DTensor) -> torch.Tensor:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = like.device_mesh, like.placements
    if not all(type(placement) in (Shard, Replicate) for placement in placements):
        # FSDP over tensor parallelism: a part is not one slice
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    if len(shape) != tensor.dim():  # a rank outside the mesh has nothing
        return tensor.new_empty(shape)
    for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
        tensor = tensor.narrow(dim, min(start, tensor.shape[dim]), length)
    return tensor


def mesh_device(model: nn.Module) -> str:
    """Return the kind of device that a model's shards lie on, or ``"cpu"`` where there are none."""
    meshes = (p.device_mesh for p in model.parameters() if is_sharded(p))
    mesh = next(meshes, None)
    return "cpu" if mesh is None else mesh.device_type


def refuse_flat(model: nn.Module) -> None:
    """Refuse a model under FSDP1, whose parameters are views of flat ones and whose state dict is a copy.

    Raises:
        BuildError: it is wrapped so.
    """
    flat: Any = sys.modules.get("torch.distributed.fsdp")
    if flat is not None and any(isinstance(m, flat.FullyShardedDataParallel) for m in model.modules()):
        raise BuildError(
            "The model is wrapped in FullyShardedDataParallel, whose parameters cannot be filled in place: "
            "load before wrapping, or shard with torch.distributed.fsdp.fully_shard(model)."
        )
