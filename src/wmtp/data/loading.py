"""Micro-batches made ahead of time by worker processes."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError
from typing import Any, final

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from wmtp.data.batches import Batch, batch_at
from wmtp.data.rows import Rows
from wmtp.data.share import StepShare
from wmtp.errors import DataError
from wmtp.runtime.stopping import end_with_parent


@contextmanager
def load_batches(
    rows: Rows,
    *,
    seed: int,
    start_row: int,
    share: StepShare,
    horizon: int,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    pin_memory: bool = False,
) -> Iterator[Iterator[Batch]]:
    """Micro-batches without end, the same for any number of workers.

    The generator of random numbers that the rest of the program uses is not touched, and the
    workers are gone when the block ends.

    Args:
        rows: the data.
        seed: of the order of rows.
        start_row: position of the first step to read, in rows since the start of training.
        share: which rows of each step are read here, in which micro-batches.
        horizon: H, prediction heads.
        num_workers: processes that make batches; 0 makes them here, when they are asked for.
        prefetch_factor: batches that each worker makes ahead.
        pin_memory: put batches into page-locked memory.
    """
    loader = DataLoader(
        _MicroBatches(rows, seed, start_row, share, horizon),
        batch_size=None,
        sampler=_Count(),
        collate_fn=_unchanged,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_belong_to_the_main_process if num_workers else None,
        # a fork of a process that has threads (torch, trackers) may hang
        multiprocessing_context=multiprocessing.get_context("spawn") if num_workers else None,
        generator=torch.Generator(),  # else it draws from the global one
    )
    batches = iter(loader)
    try:
        yield batches
    finally:
        if num_workers:
            # what the iterator's destructor does, but now, whoever still holds a reference
            batches._shutdown_workers()  # type: ignore[attr-defined]


def check_workers_can_read(rows: Rows) -> None:
    """Refuse data that cannot be handed to other processes, before a model is loaded for it.

    Raises:
        DataError: says what could not be handed over.
    """
    try:
        ForkingPickler.dumps(rows)
    except (PicklingError, TypeError, AttributeError) as error:
        raise DataError(
            f"data.train.num_workers is above 0, but this data cannot be sent to worker processes "
            f"({error}). Set data.train.num_workers: 0."
        ) from error


@final
@dataclass(frozen=True)
class _MicroBatches(Dataset[Batch]):
    """Micro-batch ``i`` after the start."""

    rows: Rows
    seed: int
    start_row: int
    share: StepShare
    horizon: int

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, len(self.share.sizes))
        start = self.start_row + step * self.share.rows_per_step + self.share.starts[part]
        return batch_at(self.rows, self.seed, start, self.share.sizes[part], self.horizon)


@final
class _Count(Sampler[int]):
    """0, 1, 2, ..."""

    def __iter__(self) -> Iterator[int]:
        return count()


def _unchanged(batch: Any) -> Any:
    return batch


def _belong_to_the_main_process(_worker: int) -> None:
    """A terminal sends Ctrl-C to workers as well, but the run decides when they stop."""
    end_with_parent()
    # the thread that sends batches may be inside torch when the interpreter is taken down, which
    # then aborts the process: so a worker that is done leaves without that
    atexit.register(os._exit, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
