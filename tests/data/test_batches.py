import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.slow_batches import gather_rows_slowly

from wmtp.data.batches import Batch, batch_at, evaluation_batches, gather_rows
from wmtp.data.order import rows_at
from wmtp.data.rows import DocumentRewards, Rows
from wmtp.data.shards import Shards, add_column
from wmtp.errors import DataError

DOCUMENTS = [[0, 5, 6, 7, 0], [0, 8, 0], [0, 9, 10, 11, 12, 13, 14, 15, 0], [0, 16, 0]]
WANTED = [
    [True, False, False, True, True],
    [True] * 3,
    [True, False, False, False, True, True, True, True, True],
    [True] * 3,
]
WEIGHTS = [[float(token % 5) for token in document] for document in DOCUMENTS]


def by_double_loop(
    shards: Shards, row: int, length: int, horizon: int, packed: bool, mask_prompt: bool
) -> dict[str, Any]:
    """The definition, one number after the other."""
    tokens, documents, columns = [], [], []
    start = 0
    for index, end in enumerate(shards.ends.tolist()):
        for position in range(start, end):
            tokens.append(int(shards.tokens[position]))
            documents.append(index)
            columns.append(
                (
                    shards.wanted is None or bool(shards.wanted.values[position]),
                    shards.loss_weights and float(shards.loss_weights.values[position]),
                )
            )
        start = end
    first = row * length if packed else ([0, *shards.ends.tolist()])[row]
    stop = len(tokens) if packed else min(int(shards.ends[row]), first + length)
    out: dict[str, Any] = {"tokens": [], "targets": [], "valid": [], "documents": [], "weights": []}
    for s in range(length):
        here = first + s
        out["tokens"].append(tokens[here] if here < stop else 0)
        out["documents"].append(documents[here] if here < stop else -1)
        for h in range(horizon):
            there = here + 1 + h
            exists = there < stop
            out["targets"].append(tokens[there] if exists else 0)
            out["valid"].append(
                exists
                and documents[here] == documents[there]
                and (columns[there][0] or not mask_prompt)
            )
            out["weights"].append(columns[there][1] if exists else 0.0)
    return out


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize("horizon", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 19, 20, 50])
def test_batches_equal_the_double_loop(
    make_shards: Any, packed: bool, mask_prompt: bool, horizon: int, length: int
) -> None:
    shards = make_shards(DOCUMENTS, WANTED, WEIGHTS)
    rows = Rows(shards, length, packed=packed, mask_prompt=mask_prompt, with_loss_weights=True)
    batches = list(evaluation_batches(rows, batch_size=3, horizon=horizon))
    assert [row for batch in batches for row in batch.rows] == list(range(len(rows)))
    for batch in batches:
        for b, row in enumerate(batch.rows):
            expected = by_double_loop(shards, row, length, horizon, packed, mask_prompt)
            assert batch.tokens_BS[b].tolist() == expected["tokens"]
            assert batch.targets_BSH[b].flatten().tolist() == expected["targets"]
            assert batch.valid_BSH[b].flatten().tolist() == expected["valid"]
            assert batch.loss_weights_BSH is not None
            assert batch.loss_weights_BSH[b].flatten().tolist() == expected["weights"]
            if packed:
                assert batch.documents_BS is not None
                assert batch.documents_BS[b].tolist() == expected["documents"]
        assert batch.valid_counts_H == tuple(batch.valid_BSH.sum((0, 1)).tolist())
        assert (batch.documents_BS is None) == (not packed)


def test_no_target_crosses_a_document(make_shards: Any) -> None:
    generator = np.random.default_rng(0)
    # every token of document d is d + 1: a valid target of another document would show
    documents = [[d + 1] * int(n) for d, n in enumerate(generator.integers(1, 9, size=60))]
    rows = Rows(make_shards(documents), 16)
    seen = 0
    for batch in evaluation_batches(rows, batch_size=4, horizon=4):
        same_BSH = batch.targets_BSH == batch.tokens_BS[:, :, None]
        assert bool(same_BSH[batch.valid_BSH].all())
        seen += int(batch.valid_BSH.sum())
    lengths = np.array([len(document) for document in documents])
    assert seen == sum(int(np.maximum(lengths - 1 - h, 0).sum()) for h in range(4))


def test_what_head_0_predicts_later_in_the_row_is_of_the_same_document(make_shards: Any) -> None:
    """So head 0 at ``s + h`` may tell head ``h`` at ``s`` what it thinks of their common target."""
    shards = make_shards(DOCUMENTS, WANTED)
    for packed, mask_prompt in itertools.product([True, False], [True, False]):
        rows = Rows(shards, 6, packed=packed, mask_prompt=mask_prompt)
        batch = gather_rows(rows, np.arange(len(rows)), horizon=3)
        for h in (1, 2):
            valid, later = batch.valid_BSH[:, : 6 - h, h], batch.valid_BSH[:, h:, 0]
            assert valid.any()
            assert (later | ~valid).all()
            assert torch.equal(batch.targets_BSH[:, : 6 - h, h], batch.targets_BSH[:, h:, 0])


def test_every_token_with_a_past_is_a_next_token_once(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    for length in (1, 3, 19, 20, 64):
        batches = evaluation_batches(Rows(shards, length), batch_size=2, horizon=1)
        total = sum(batch.valid_counts_H[0] for batch in batches)
        assert total == sum(len(document) - 1 for document in DOCUMENTS)


def test_all_tokens_of_a_row_can_be_put_together(make_shards: Any) -> None:
    rows = Rows(make_shards(DOCUMENTS), 6)
    batch = gather_rows(rows, np.array([0, 1]), horizon=4)
    whole_BT = torch.cat((batch.tokens_BS, batch.targets_BSH[:, -1, :3]), 1)
    stream = [token for document in DOCUMENTS for token in document]
    assert whole_BT.tolist() == [stream[0:9], stream[6:15]]
    for h in range(4):
        assert torch.equal(batch.targets_BSH[:, :-1, h], batch.targets_BSH[:, 1:, h - 1]) or h == 0


def test_prompt_tokens_stay_readable_as_targets(make_shards: Any) -> None:
    batch = gather_rows(Rows(make_shards([DOCUMENTS[0]], [WANTED[0]]), 4), np.array([0]), 2)
    assert batch.targets_BSH[0].tolist() == [[5, 6], [6, 7], [7, 0], [0, 0]]
    assert batch.valid_BSH[0].tolist() == [
        [False, False],
        [False, True],
        [True, True],
        [True, False],
    ]
    assert batch.valid_counts_H == (2, 2)


def test_types_are_those_the_model_expects(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS, WANTED, WEIGHTS)
    scores = add_column(shards, "ref_ce.x", "f16", [np.arange(20.0)])
    rows = Rows(shards, 4, with_loss_weights=True, reference_scores=scores)
    batch = batch_at(rows, seed=0, start_row=0, batch_size=2, horizon=3)
    dtypes = {
        "tokens_BS": torch.int64,
        "targets_BSH": torch.int64,
        "valid_BSH": torch.bool,
        "documents_BS": torch.int32,
        "reference_ce_BSH": torch.float32,
        "loss_weights_BSH": torch.float32,
    }
    for name, dtype in dtypes.items():
        tensor = getattr(batch, name)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.shape == ((2, 4) if name.endswith("_BS") else (2, 4, 3))


def test_columns_not_asked_for_are_absent(make_shards: Any) -> None:
    batch = gather_rows(Rows(make_shards(DOCUMENTS, WANTED, WEIGHTS), 4), np.array([0]), 2)
    assert batch.loss_weights_BSH is None
    assert batch.reference_ce_BSH is None


def test_batch_depends_on_position_alone(make_shards: Any) -> None:
    rows = Rows(make_shards(DOCUMENTS), 4)
    one = batch_at(rows, seed=5, start_row=3, batch_size=4, horizon=2)
    parts = [batch_at(rows, seed=5, start_row=n, batch_size=2, horizon=2) for n in (3, 5)]
    assert one.rows == parts[0].rows + parts[1].rows
    assert torch.equal(one.targets_BSH, torch.cat([part.targets_BSH for part in parts]))


def test_batch_larger_than_the_data_reads_it_again(make_shards: Any) -> None:
    rows = Rows(make_shards(DOCUMENTS), 10)
    batch = batch_at(rows, seed=0, start_row=0, batch_size=5, horizon=1)
    assert len(rows) == 2
    assert sorted(batch.rows[:2]) == sorted(batch.rows[2:4]) == [0, 1]


def test_moving_keeps_everything(make_shards: Any) -> None:
    batch: Batch = gather_rows(Rows(make_shards(DOCUMENTS), 4), np.array([0, 2]), 2)
    moved = batch.to(torch.device("meta"))
    assert moved.tokens_BS.device.type == "meta"
    assert moved.reference_ce_BSH is None
    assert (moved.rows, moved.valid_counts_H) == (batch.rows, batch.valid_counts_H)


def test_weights_that_the_data_lacks_are_refused(make_shards: Any) -> None:
    with pytest.raises(DataError, match="has no loss_weights"):
        Rows(make_shards(DOCUMENTS), 4, with_loss_weights=True)


def test_scores_of_other_tokens_are_refused(make_shards: Any) -> None:
    other = make_shards([[0, 1]], name="other")
    scores = add_column(other, "ref_ce.x", "f16", [np.zeros(2)])
    with pytest.raises(ValueError, match="2 scores for 20 tokens"):
        Rows(make_shards(DOCUMENTS), 4, reference_scores=scores)


def test_token_outside_the_vocabulary_is_a_damaged_file(make_shards: Any) -> None:
    rows = Rows(make_shards([[0, 60_000, 0]]), 4)
    with pytest.raises(DataError, match="token 60000 is outside the vocabulary"):
        gather_rows(rows, np.array([0]), 1)


def test_row_tells_where_it_came_from(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    assert Rows(shards, 4).describe(0) == "file:1"
    assert Rows(shards, 6).describe(0) == "file:1 to file:2"
    assert Rows(shards, 6).describe(3) == "file:4"
    assert Rows(shards, 3, packed=False).describe(2) == "file:3"


# Positions      0 1 2 3 4 | 5 6 7 | 8 9 10 11 12 13 14 15 16 | 17 18 19
# Wanted (above) 1 0 0 1 1 | 1 1 1 | 1 0  0  0  1  1  1  1  1 |  1  1  1
# a document's first token cannot be predicted: 2, 2, 5 and 2 wanted tokens take the reward
REWARDS = np.array([1.0, np.nan, 0.5, -3.0], dtype=np.float32)
NAN = float("nan")


def rewards_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    assert batch.rewards_BSH is not None
    assert batch.last_BSH is not None
    assert batch.rewards_BSH.dtype == torch.float32
    assert batch.last_BSH.dtype == torch.bool
    return batch.rewards_BSH.numpy(), batch.last_BSH.numpy()


def test_terminal_rewards_stand_on_the_last_wanted_token(make_shards: Any) -> None:
    rows = Rows(make_shards(DOCUMENTS, WANTED), 20, rewards=DocumentRewards(REWARDS))
    rewards_BSH, last_BSH = rewards_of(gather_rows(rows, np.array([0]), 2))
    of_targets = [0, 0, 0, 1] + [NAN] * 3 + [0] * 8 + [0.5, 0, 0, -3]  # of tokens 1 to 19
    np.testing.assert_array_equal(rewards_BSH[0, :, 0], [*of_targets, 0])
    np.testing.assert_array_equal(rewards_BSH[0, :, 1], [*of_targets[1:], 0, 0])
    assert np.flatnonzero(last_BSH[0, :, 0]).tolist() == [3, 6, 15, 18]  # tokens 4, 7, 16, 19
    assert np.flatnonzero(last_BSH[0, :, 1]).tolist() == [2, 5, 14, 17]


def test_uniform_rewards_are_shared_by_the_wanted_tokens(make_shards: Any) -> None:
    rewards = DocumentRewards(REWARDS, "uniform")
    rows = Rows(make_shards(DOCUMENTS, WANTED), 8, rewards=rewards)
    rewards_BSH, last_BSH = rewards_of(gather_rows(rows, np.array([0, 1, 2]), 1))
    np.testing.assert_array_equal(rewards_BSH[0, :, 0], [0, 0, 0.5, 0.5, NAN, NAN, NAN, 0])
    np.testing.assert_allclose(rewards_BSH[1, :, 0], [0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.1])
    np.testing.assert_array_equal(rewards_BSH[2, :, 0], [0, -1.5, -1.5, 0, 0, 0, 0, 0])
    assert [np.flatnonzero(row).tolist() for row in last_BSH[:, :, 0]] == [[3, 6], [7], [2]]


def test_rewards_without_a_mask_count_the_prompt(make_shards: Any) -> None:
    rewards = DocumentRewards(REWARDS, "uniform")
    rows = Rows(make_shards(DOCUMENTS, WANTED), 8, mask_prompt=False, rewards=rewards)
    rewards_BSH, _ = rewards_of(gather_rows(rows, np.array([0, 1]), 1))
    np.testing.assert_array_equal(rewards_BSH[0, :, 0], [0.25] * 4 + [NAN] * 3 + [0])
    np.testing.assert_array_equal(rewards_BSH[1, :, 0], [0.0625] * 8)


def test_a_row_cut_before_its_last_wanted_token_does_not_hold_it(make_shards: Any) -> None:
    for spread, expected in {
        "terminal": [[0, 0, 0, 1], [0, 0, 0, 0]],
        "uniform": [[0, 0, 0.5, 0.5], [0, 0, 0, 0.1]],
    }.items():
        rewards = DocumentRewards(REWARDS, spread)  # type: ignore[arg-type]
        rows = Rows(make_shards(DOCUMENTS, WANTED, name=spread), 5, packed=False, rewards=rewards)
        rewards_BSH, last_BSH = rewards_of(gather_rows(rows, np.array([0, 2]), 1))
        np.testing.assert_allclose(rewards_BSH[:, :4, 0], expected, rtol=1e-6)
        assert not rewards_BSH[:, 4].any()  # the rows end after five tokens
        assert last_BSH[:, :, 0].tolist() == [[False, False, False, True, False], [False] * 5]


def test_a_document_that_wants_nothing_has_no_last_token(make_shards: Any) -> None:
    shards = make_shards([[0, 5, 6], [7]], wanted=[[True, False, False], [True]])
    for spread in ("terminal", "uniform"):
        values = np.array([2.0, 2.0], dtype=np.float32)
        rows = Rows(shards, 3, rewards=DocumentRewards(values, spread))  # type: ignore[arg-type]
        rewards_BSH, last_BSH = rewards_of(gather_rows(rows, np.array([0]), 2))
        assert not rewards_BSH.any()
        assert not last_BSH.any()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("spread", ["terminal", "uniform"])
def test_rewards_of_a_document_add_up(make_shards: Any, packed: bool, spread: Any) -> None:
    generator = np.random.default_rng(3)
    lengths = generator.integers(2, 30, size=80)
    wanted = [[True] * (n - 1) + [True] if n < 4 else [True, False] + [True] * (n - 2)
              for n in map(int, lengths)]  # fmt: skip
    values = generator.normal(size=80).astype(np.float32)
    shards = make_shards([[1] * int(n) for n in lengths], wanted)
    rows = Rows(shards, 32, packed=packed, rewards=DocumentRewards(values, spread))
    total = 0.0
    for batch in evaluation_batches(rows, batch_size=7, horizon=1):
        rewards_BSH, last_BSH = rewards_of(batch)
        assert batch.valid_BSH.numpy()[rewards_BSH != 0].all()
        assert batch.valid_BSH.numpy()[last_BSH].all()
        total += float(rewards_BSH.sum(dtype=float))
    # each share is rounded to float32: 80 documents of size 1 leave far less than this
    assert total == pytest.approx(float(values.sum(dtype=float)), abs=1e-4)


def test_wanted_tokens_are_found_across_pieces(
    make_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(DOCUMENTS, WANTED)
    monkeypatch.setattr("wmtp.data.rows._CHUNK", 3)
    found = Rows(shards, 4).wanted_tokens
    assert found.first.tolist() == [0, 5, 8, 17]
    assert found.last.tolist() == [4, 7, 16, 19]
    assert found.count.tolist() == [2, 2, 5, 2]


def test_rewards_travel_with_the_batch(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS, WANTED, rewards=[1.0, None, 0.5, -3.0])
    rows = Rows(shards, 8, rewards=DocumentRewards(shards.rewards))
    copied_rows = pickle.loads(pickle.dumps(rows))
    batch = gather_rows(rows, np.array([0, 1]), 3)
    for copy in (pickle.loads(pickle.dumps(batch)), gather_rows(copied_rows, np.array([0, 1]), 3)):
        np.testing.assert_array_equal(copy.rewards_BSH.numpy(), batch.rewards_BSH.numpy())
        assert torch.equal(copy.last_BSH, batch.last_BSH)
    moved = batch.to(torch.device("meta"))
    assert moved.rewards_BSH.device.type == moved.last_BSH.device.type == "meta"
    plain = gather_rows(Rows(shards, 8), np.array([0]), 3)
    assert (plain.rewards_BSH, plain.last_BSH) == (None, None)


def test_rewards_that_do_not_fit_are_refused(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    with pytest.raises(ValueError, match=r"rewards \(3,\) for 4 documents"):
        Rows(shards, 4, rewards=DocumentRewards(REWARDS[:3]))
    with pytest.raises(ValueError, match="infinite"):
        DocumentRewards(np.array([np.inf], dtype=np.float32))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("packed", [True, False])
def test_fast_batches_equal_slow_ones_bit_for_bit(
    make_shards: Any, packed: bool, columns: bool
) -> None:
    generator = np.random.default_rng(11)
    lengths = generator.zipf(1.4, size=120).clip(1, 90)
    documents = [generator.integers(0, 300, size=n).tolist() for n in lengths]
    wanted = [(generator.random(n) < 0.8).tolist() for n in lengths] if columns else None
    weights = [generator.random(n).tolist() for n in lengths] if columns else None
    shards = make_shards(documents, wanted, weights)
    scores = add_column(shards, "ref_ce.x", "f16", [generator.random(int(lengths.sum()))])
    rewards = np.where(generator.random(120) < 0.5, np.nan, 1.5).astype(np.float32)
    for length, horizon, mask in itertools.product((1, 5, 64, 5000), (1, 4), (True, False)):
        rows = Rows(
            shards,
            length,
            packed=packed,
            mask_prompt=mask,
            with_loss_weights=columns,
            reference_scores=scores if columns else None,
            rewards=DocumentRewards(rewards, "uniform") if columns else None,
        )
        for start in (0, 17):
            chosen = rows_at(len(rows), 3, start, 24)
            fast, slow = (
                gather_rows(rows, chosen, horizon),
                gather_rows_slowly(rows, chosen, horizon),
            )
            for name, expected in vars(slow).items():
                found = getattr(fast, name)
                if isinstance(expected, torch.Tensor):
                    assert found.dtype == expected.dtype, name
                    assert found.is_contiguous(), name
                    assert found.numpy().tobytes() == expected.numpy().tobytes(), name
                else:
                    assert found == expected, name
