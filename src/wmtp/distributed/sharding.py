"""A model in slices: each rank keeps a part of every parameter, its gradient and its state.

FSDP2 of torch does the work: a block's parameters are gathered when it runs and let go after it.
The parameters outside the blocks (embedding, unembedding, norms) form one group, gathered once in
a forward pass and kept until the gradients are done, because the loss reads the unembedding in
chunks and adds its gradient there: one gathering, one reduction, however many chunks.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wmtp.distributed.ranks import Ranks

if TYPE_CHECKING:  # half a second that a run of one process does not pay
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Sharding = Literal["full", "hybrid"]


def shard_module(
    root: nn.Module,
    blocks: Iterable[nn.Module],
    *,
    ranks: Ranks,
    device: torch.device,
    sharding: Sharding,
    other_forwards: Iterable[str] = (),
    whole: Iterable[nn.Parameter] = (),
) -> None:
    """Slice a module in place; its parameters become ``DTensor`` and its names stay.

    Gradients are summed over ranks and not averaged: the loss is divided by the targets of all.

    Args:
        root: the model, on the CPU; each part moves to the device as it is sliced.
        blocks: parts of it that are gathered and let go one by one.
        ranks: who shares it.
        device: of this rank.
        sharding: ``full`` slices over all ranks; ``hybrid`` slices within a machine and copies
            between machines, which sends less over a slow network.
        other_forwards: names of methods of ``root`` that run it, besides ``forward``.
        whole: parameters that stay whole on each rank; their gradients are the caller's to sum.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = _mesh(ranks, device, sharding)
    kept_whole = set(whole)
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=kept_whole)
    fully_shard(root, mesh=mesh, ignored_params=kept_whole)
    for name in other_forwards:
        register_fsdp_forward_method(root, name)
    for module in _sharded(root):
        module.set_gradient_divide_factor(1.0)
        # plain sums: dividing while adding is for some kinds of network only
        module.set_force_sum_reduction_for_comms(True)


def send_gradients(root: nn.Module, *, now: bool) -> None:
    """Say whether the next backward pass sends its gradients; until then they add up, unsent.

    So the micro-batches of a step cost one reduction, and one gathering of what is outside the
    blocks.
    """
    if dist.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        if isinstance(root, FSDPModule):
            root.set_requires_gradient_sync(now)


def let_go(root: nn.Module) -> None:
    """Give back what a forward pass without a backward pass left gathered."""
    for module in _sharded(root):
        module.reshard()


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from its slices; every rank must ask. Others are as they are."""
    if not is_sliced(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this rank."""
    if not is_sliced(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def is_sliced(tensor: Tensor) -> bool:
    """Whether a rank holds only a part of it."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def has_slices(module: nn.Module) -> bool:
    """Whether ranks hold parts of it, so that none can go through it without the others."""
    return any(is_sliced(parameter) for parameter in module.parameters())


def _sharded(root: nn.Module) -> "list[FSDPModule]":
    if not dist.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def _mesh(ranks: Ranks, device: torch.device, sharding: Sharding) -> "DeviceMesh":
    from torch.distributed.device_mesh import init_device_mesh

    if sharding == "hybrid":
        machines = ranks.count // ranks.per_machine
        return init_device_mesh(
            device.type, (machines, ranks.per_machine), mesh_dim_names=("copies", "slices")
        )
    return init_device_mesh(device.type, (ranks.count,), mesh_dim_names=("slices",))
