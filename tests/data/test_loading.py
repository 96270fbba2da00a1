import multiprocessing
import os
import pickle
import random
import signal
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch

from wmtp.data.batches import Batch
from wmtp.data.loading import check_workers_can_read, load_batches
from wmtp.data.rows import Rows
from wmtp.data.share import share_of_step
from wmtp.errors import DataError

# a machine of one core is told that two workers are many
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SHARE = share_of_step(rows=3, largest=3)


@pytest.fixture
def rows(make_shards: Any) -> Rows:
    documents = [[0, *range(10 + n, 20 + n), 0] for n in range(9)]
    return Rows(make_shards(documents), 8)


def load(rows: Rows, start_row: int, count: int, num_workers: int = 0) -> list[Batch]:
    with load_batches(
        rows, seed=7, start_row=start_row, share=SHARE, horizon=2, num_workers=num_workers
    ) as batches:
        return list(islice(batches, count))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.rows for batch in one] == [batch.rows for batch in other]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.tokens_BS, b.tokens_BS)
        assert torch.equal(a.targets_BSH, b.targets_BSH)
        assert torch.equal(a.valid_BSH, b.valid_BSH)


def test_workers_change_neither_batches_nor_random_numbers(rows: Rows) -> None:
    assert len(rows) == 14  # 12 micro-batches run over two ends of the data
    before = random_states()
    assert_same(load(rows, 0, 12), load(rows, 0, 12, num_workers=2))
    assert random_states() == before
    assert multiprocessing.active_children() == []


def random_states() -> list[str]:
    return [
        str(torch.get_rng_state().tolist()),
        str(random.getstate()),
        str(np.random.get_state()),
    ]


def test_starting_in_the_middle_goes_on_as_if_never_stopped(rows: Rows) -> None:
    whole = load(rows, 0, 12)
    for start in (1, 4, 5, 9):
        assert_same(load(rows, 3 * start, 12 - start), whole[start:])


def test_each_epoch_has_every_row_once(rows: Rows) -> None:
    seen = [row for batch in load(rows, 0, 14) for row in batch.rows]
    for epoch in range(3):
        assert sorted(seen[14 * epoch : 14 * (epoch + 1)]) == list(range(14))


def test_batch_travels_between_processes_as_plain_bytes(rows: Rows) -> None:
    (batch,) = load(rows, 0, 1)
    copy = pickle.loads(ForkingPickler.dumps(batch))  # as a queue does; tensors would be shared
    assert_same([copy], [batch])
    copy.tokens_BS[0, 0] = 1  # a tensor like any other
    assert torch.equal(copy.documents_BS, batch.documents_BS)
    assert (copy.loss_weights_BSH, copy.valid_counts_H) == (None, batch.valid_counts_H)


def test_workers_outlive_signals_but_not_the_block(rows: Rows) -> None:
    kept = []

    def fail() -> None:
        with load_batches(
            rows, seed=7, start_row=0, share=SHARE, horizon=2, num_workers=1
        ) as batches:
            kept.append(batches)  # a reference that outlives the block
            first = next(batches)
            (worker,) = multiprocessing.active_children()
            for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal or a scheduler sends
                assert worker.pid is not None
                os.kill(worker.pid, number)
            assert_same([first, *islice(batches, 9)], load(rows, 0, 10))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert multiprocessing.active_children() == []


def test_req6_data_that_workers_cannot_be_sent_is_refused(rows: Rows) -> None:
    check_workers_can_read(rows)
    local = type("Local", (), {})()  # a class that no other process could find
    object.__setattr__(rows, "rewards", local)
    with pytest.raises(DataError, match=r"Set data\.train\.num_workers: 0"):
        check_workers_can_read(rows)
