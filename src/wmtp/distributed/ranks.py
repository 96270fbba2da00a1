"""The processes of one run: who they are, and the few things they tell each other.

A launcher such as ``torchrun`` starts several equal processes, called ranks. All of them run the
same program on their share of the data; the first one alone talks to the user and to the run
folder. One process without a launcher is a run of one rank, for which everything here is free.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal, final

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp.errors import DeviceError, LostRankError, WmtpError

Backend = Literal["nccl", "gloo"]

DEVICE_TIMEOUT: Final = timedelta(minutes=30)
"""How long one waits for the others in a computation that all take part in."""

HOST_TIMEOUT: Final = timedelta(days=1)
"""How long ranks wait for one that tokenizes data, fetches a checkpoint or writes a large model.

One that ends closes its connections, which the others notice at once, however long this is.
"""

_BUCKET_BYTES: Final = 32 * 2**20


class FirstRankFailedError(WmtpError):
    """The first rank was refused; it has said why, and the others only leave."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("the first rank was refused")
        self.exit_code = exit_code


@final
@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; made by ``joined_ranks``.

    Every method with a collective meaning must be called by all ranks in the same order.

    Attributes:
        index: which one this is, from 0.
        count: how many there are.
        per_machine: how many of them run on each machine.
        on_host: group for numbers that are on the CPU; None where there is one rank only.
        beside: another such group, for another thread. Made with the first one: whoever makes a
            group waits for all, and does not notice that one of them is gone.
    """

    index: int = 0
    count: int = 1
    per_machine: int = 1
    on_host: dist.ProcessGroup | None = None
    beside: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that talks to the user and to the run folder."""
        return self.index == 0

    def apart(self) -> "Ranks":
        """The same ranks with a line of their own, to talk from another thread."""
        return self if self.count == 1 else replace(self, on_host=self.beside)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on some rank."""
        return flag if self.count == 1 else self.sum([float(flag)])[0] > 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64, the same to the last bit on each."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.on_host)
        return [float(value) for value in total]

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors on the device by their sums over all ranks, many in one message."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            totals = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, totals, strict=True):
                tensor.copy_(total.view_as(tensor))

    def gather_on_first(self, tensors: Mapping[str, Tensor]) -> None:
        """Move sums to the first rank: it gets those of all, the others start again from zero.

        So a checkpoint holds one set of sums that suits any number of ranks, and a run that goes
        on from it adds the same numbers in the same order as one that never stopped.
        """
        self.sum_in_place(tensors.values())
        if not self.is_first:
            for tensor in tensors.values():
                tensor.zero_()

    def from_first(self, decide: Callable[[], Any]) -> Any:
        """What the first rank decides, as JSON values; the others do not run ``decide``.

        Raises:
            WmtpError: the first rank was refused. Only there does it say why.
        """
        if self.count == 1:
            return decide()
        if not self.is_first:
            answer = json.loads(self._told_by_first(""))
            if "exit_code" in answer:
                raise FirstRankFailedError(answer["exit_code"])
            return answer["decided"]
        try:
            decided = decide()
        except WmtpError as error:
            self._told_by_first(json.dumps({"exit_code": error.exit_code}))
            raise
        self._told_by_first(json.dumps({"decided": decided}))
        return decided

    def everywhere(self, failure: str | None) -> list[str]:
        """The failures that ranks report, each with its rank; empty if all went well.

        What every one of them reports is told once.
        """
        if self.count == 1:
            return [] if failure is None else [failure]
        told = [self._told_by(index, failure or "") for index in range(self.count)]
        if len(set(told)) == 1:
            return told[:1] if told[0] else []
        return [f"rank {index}: {text}" for index, text in enumerate(told) if text]

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the block on the first rank, then on the others, which find what it left on disk."""
        if not self.is_first:
            self.wait()
        try:
            yield
        finally:
            if self.is_first:
                self.wait()

    def wait(self) -> None:
        """Return when all ranks have come here."""
        self.sum([0.0])

    def _told_by_first(self, text: str) -> str:
        return self._told_by(0, text)

    def _told_by(self, index: int, text: str) -> str:
        # bytes of JSON, and not torch's own exchange of objects, which unpickles what it gets
        content = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        dist.broadcast(length, src=index, group=self.on_host)
        if self.index != index:
            content = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, src=index, group=self.on_host)
        return bytes(content.numpy()).decode().strip()


ALONE: Final = Ranks()
"""A run of one process."""


def launched_ranks(environment: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """Index, count and index on this machine, as ``torchrun`` tells them; ``(0, 1, 0)`` without.

    Raises:
        DeviceError: the variables are incomplete or are not numbers.
    """
    if "WORLD_SIZE" not in environment:
        return 0, 1, 0
    try:
        index, count, local = (int(environment[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise DeviceError(
            f"WORLD_SIZE is set, but {error} is missing or no number in the environment. Start "
            "several processes with torchrun, or unset WORLD_SIZE."
        ) from error
    if not 0 <= index < count:
        raise DeviceError(f"RANK is {index}, but WORLD_SIZE is {count}. Start with torchrun.")
    return index, count, local


@contextmanager
def joined_ranks(backend: Backend) -> Iterator[Ranks]:
    """Meet the other ranks for the length of the block.

    Args:
        backend: for tensors on the device; numbers on the CPU always travel by gloo.

    Raises:
        DeviceError: the others cannot be reached.
        LostRankError: one of them ended during the block.
    """
    index, count, _ = launched_ranks()
    if count == 1:
        yield ALONE
        return
    try:
        dist.init_process_group(backend, timeout=DEVICE_TIMEOUT)
        on_host, beside = (dist.new_group(backend="gloo", timeout=HOST_TIMEOUT) for _ in range(2))
    except (RuntimeError, ValueError) as error:
        raise DeviceError(f"rank {index} cannot meet the {count - 1} others: {error}") from error
    try:
        per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        yield Ranks(index, count, per_machine, on_host, beside)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise LostRankError(
            f"rank {index} lost another rank, which has ended: see what it said"
        ) from error
    finally:
        dist.destroy_process_group()


def is_lost_rank(error: Exception) -> bool:
    """Whether an error says that another rank could not be reached any more."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, up to some megabytes at a time."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if bucket and (tensor.dtype != bucket[0].dtype or size + nbytes > _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += nbytes
    if bucket:
        yield bucket
