"""Checks of loading into models that are sharded by ``fully_shard``, each run on two ranks at once."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import Placement, _StridedShard

import bundles
from bundles import BuildError, StateDictMismatchError
from bundles.builders.shards import shard
from ranks import WORLD, agree, contents, moved, whole
from toys import as_bytes

M = TypeVar("M", bound=nn.Module)


class Net(nn.Module):
    """Sizes that two ranks cannot share evenly, a tie, and buffers that a file has and has not."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.deep = nn.Linear(4, 4)
        self.one = nn.Linear(4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.deep(self.embed(x)))
        logits: Tensor = self.out(x) * self.scale + self.one(x)
        return logits


def filling_a_model_on_meta_gives_each_rank_its_part_of_the_file(folder: Path) -> None:
    state, path = _saved(folder)
    model = _sharded(_on_meta())
    with CommDebugMode() as messages:  # type: ignore[no-untyped-call]
        report = bundles.load_into(model, path)
    assert messages.get_total_counts() == 0
    assert (set(report.loaded), report.missing, report.unexpected) == (set(state), (), ())
    assert {name: as_bytes(whole(tensor)) for name, tensor in model.state_dict().items()} == state
    assert model.embed.weight is model.out.weight
    local = sum(_local(parameter).numel() for parameter in model.parameters())
    sizes = [3, 2] if dist.get_rank() == 0 else [2, 2]
    assert (_local(model.embed.weight).shape[0], _local(model.deep.weight).shape[0]) == tuple(sizes)
    assert local < sum(parameter.numel() for parameter in model.parameters())


def a_filled_model_computes_and_trains_as_an_unsharded_one(folder: Path) -> None:
    _, path = _saved(folder)
    model, plain = _sharded(_on_meta()), Net()
    bundles.load_into(model, path)
    bundles.load_into(plain, path)
    x = torch.arange(5)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.25) for net in (model, plain)]
    assert as_bytes(model(x)) == as_bytes(plain(x))
    for net, optimizer in zip((model, plain), optimizers, strict=True):
        net(x).sum().backward()
        optimizer.step()
    assert moved(model, contents(plain)) == set()


def real_shards_are_overwritten_in_place(folder: Path) -> None:
    state, path = _saved(folder)
    model = _sharded(Net())
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with CommDebugMode() as messages:  # type: ignore[no-untyped-call]
        bundles.load_into(model, path)
    assert messages.get_total_counts() == 0
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert {name: as_bytes(whole(tensor)) for name, tensor in model.state_dict().items()} == state


def a_frozen_part_stays_mapped_and_what_trains_gets_memory(folder: Path) -> None:
    state, path = _saved(folder)
    model = _sharded(_on_meta())
    bundles.load_into(model, path, freeze="match:deep")
    model(torch.arange(5)).sum().backward()
    mapped = {name for name, parameter in model.named_parameters() if _mapped(parameter, path)}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert mapped == frozen == {"deep.weight", "deep.bias"}
    assert as_bytes(whole(model.deep.weight)) == state["deep.weight"]


def a_file_that_somebody_may_write_is_not_kept(folder: Path) -> None:
    state, path = _saved(folder, mode=0o644)
    model = _sharded(_on_meta())
    bundles.load_into(model, path, freeze="all", freeze_mode="features")
    assert not any(_mapped(parameter, path) for parameter in model.parameters())
    assert as_bytes(whole(model.deep.weight)) == state["deep.weight"]


def a_part_can_be_filled_and_the_rest_is_the_callers(folder: Path) -> None:
    state, path = _saved(folder)
    net = _on_meta()
    with torch.device("meta"):
        head = nn.Linear(5, 2)
    model = _sharded(nn.Sequential(OrderedDict(net=net, head=head)))
    report = bundles.load_into(model, path, prefix="net.", freeze="loaded")
    assert all(name.startswith("net.") for name in report.loaded)
    assert head.weight.is_meta
    head.to_empty(device="cpu")
    with torch.no_grad():
        head.weight.fill_(0.5)
        head.bias.fill_(0.25)
    model(torch.arange(5)).sum().backward()
    assert as_bytes(whole(net.deep.weight)) == state["deep.weight"]
    with_grad = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_grad == {"head.weight", "head.bias"}


def what_would_be_left_on_meta_is_named(folder: Path) -> None:
    _, path = _saved(folder)
    with torch.device("meta"):
        model = _sharded(Net())
    try:
        bundles.load_into(model, path)
    except StateDictMismatchError as error:
        missing = error.missing
    assert missing == ("scale",)
    assert all(parameter.is_meta for parameter in model.parameters())


def a_bundle_is_built_on_meta_sharded_and_filled(folder: Path) -> None:
    bundle = bundles.WAV2VEC2_NANO_DIGITS
    model, plain = bundle.get_model(pretrained=False, device="meta"), bundle.get_model(freeze=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    bundles.load_into(_sharded(model), bundle, freeze=bundle.default_policy)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert contents(model) == contents(plain)
    wave = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert as_bytes(model.train()(wave)[0]) == as_bytes(plain.train()(wave)[0])


def a_shard_is_the_one_that_torch_would_make_in_every_layout(folder: Path) -> None:
    row, square = init_device_mesh("cpu", (WORLD,)), init_device_mesh("cpu", (1, WORLD))
    layouts: list[tuple[DeviceMesh, list[Placement]]] = [
        (row, [Shard(0)]),
        (row, [Shard(1)]),
        (row, [Replicate()]),
        (square, [Shard(0), Shard(0)]),
        (square, [Replicate(), Shard(1)]),
        (square, [_StridedShard(0, split_factor=2), Shard(0)]),
    ]
    for shape in [(1, 1), (5, 3), (4, 6)]:
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
        for mesh, placements in layouts:
            like = distribute_tensor(torch.empty(shape), mesh, placements)
            wanted = distribute_tensor(tensor.float(), mesh, placements)
            with CommDebugMode() as messages:  # type: ignore[no-untyped-call]
                made = shard(tensor, like)
            assert messages.get_total_counts() == 0
            assert (made.placements, made.dtype) == (like.placements, torch.float32)
            assert as_bytes(made.to_local()) == as_bytes(wanted.to_local()), (shape, placements)


def flat_parameters_are_refused(folder: Path) -> None:
    _, path = _saved(folder)
    model = FullyShardedDataParallel(nn.Linear(4, 4), use_orig_params=True, device_id=torch.device("cpu"))
    try:
        bundles.load_into(model, path)
    except BuildError as error:
        message = str(error)
    assert "load before wrapping" in message


def _saved(folder: Path, mode: int = 0o444) -> tuple[dict[str, bytes], Path]:
    """Return the state of a net, and the file that it was saved in, the same for both ranks."""
    path = folder / "net.safetensors"
    net = Net()
    net(torch.arange(5))  # so that the statistics are some
    if dist.get_rank() == 0:
        save_file({k: v for k, v in net.state_dict().items() if k != "out.weight"}, path)
        path.chmod(mode)
    dist.barrier()
    state = {name: as_bytes(tensor) for name, tensor in net.state_dict().items()}
    assert agree(state)
    return state, path


def _on_meta() -> Net:
    """A net whose parameters are on the meta device, and whose buffers are real."""
    net = Net()
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to("meta"))
    net.out.weight = net.embed.weight
    return net


def _sharded(model: M) -> M:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in model.children():
            if isinstance(module, nn.Linear) and module.out_features == 4:
                fully_shard(module)
        fully_shard(model)
    return model


def _local(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def _mapped(parameter: Tensor, path: Path) -> bool:
    """Whether a rank's part lies in the map of a file."""
    place = _local(parameter).data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= place < stop:
            return line.endswith(str(path))
    return False
