from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wmtp.data.batches import evaluation_batches
from wmtp.data.rows import Rows
from wmtp.data.scores import cached_scores, score_key, scoring_rows, write_scores

DOCUMENTS = [[0, 5, 6, 7, 0], [0, 8, 0], [0, 9, 10, 11, 12, 13, 14, 15, 0], [0, 16, 0]]


def reference(rows: Rows, batch_size: int) -> Iterator[Tensor]:
    """A stand-in whose score tells token and context: token + (tokens seen before it) / 64."""
    for batch in evaluation_batches(rows, batch_size=batch_size, horizon=1):
        scores_BS = torch.zeros(batch.tokens_BS.shape)
        for b, s in batch.valid_BSH[:, :, 0].nonzero().tolist():
            seen = s + 1
            if batch.documents_BS is not None:
                seen = int((batch.documents_BS[b, : s + 1] == batch.documents_BS[b, s]).sum())
            scores_BS[b, s] = float(batch.targets_BSH[b, s, 0]) + seen / 64
        yield scores_BS


def expected_score(shards: Any, position: int, length: int, packed: bool) -> float:
    """Score of a token by definition; 0 where no row has it as the next token."""
    document = int(np.searchsorted(shards.ends, position, side="right"))
    first = int(shards.ends[document - 1]) if document else 0
    row_start = (position - 1) // length * length if packed else first
    if position == first or position - row_start > (length if packed else length - 1):
        return 0.0
    return float(shards.tokens[position]) + (position - max(first, row_start)) / 64


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [1, 3, 4, 19, 20, 30])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_each_token_has_the_score_from_its_own_row(
    make_shards: Any, packed: bool, length: int, batch_size: int
) -> None:
    shards = make_shards(DOCUMENTS)
    rows = scoring_rows(shards, length, packed)
    column = write_scores(rows, "key", reference(rows, batch_size))
    expected = [expected_score(shards, p, length, packed) for p in range(20)]
    assert column.values.tolist() == expected


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [3, 4, 7])
def test_every_valid_target_has_its_score(make_shards: Any, packed: bool, length: int) -> None:
    shards = make_shards(DOCUMENTS)
    scoring = scoring_rows(shards, length, packed)
    scores = write_scores(scoring, "key", reference(scoring, 2))
    rows = Rows(shards, length, packed=packed, reference_scores=scores)
    batches = list(evaluation_batches(rows, batch_size=2, horizon=4))
    for batch, next_BS in zip(batches, reference(scoring, 2), strict=True):
        assert batch.reference_ce_BSH is not None
        head_0 = batch.valid_BSH[:, :, 0]
        assert torch.equal(batch.reference_ce_BSH[:, :, 0][head_0], next_BS[head_0])
        # token + (tokens seen) / 64, and at least one was seen
        fraction = batch.reference_ce_BSH - batch.targets_BSH
        assert bool((fraction[batch.valid_BSH] >= 1 / 64).all())
        assert bool((fraction[batch.valid_BSH] < 1).all())


def test_target_after_the_row_has_the_score_of_the_row_that_follows(make_shards: Any) -> None:
    shards = make_shards([[0, *range(5, 15)]])
    rows = scoring_rows(shards, 4, packed=True)
    scores = write_scores(rows, "key", reference(rows, 1))
    batch = next(
        evaluation_batches(Rows(shards, 4, reference_scores=scores), batch_size=1, horizon=3)
    )
    # position 3 aims at tokens 4, 5, 6 (8, 9, 10): 4 seen in this row, then 1 and 2 in the next
    assert batch.reference_ce_BSH is not None
    assert batch.reference_ce_BSH[0, 3].tolist() == [8 + 4 / 64, 9 + 1 / 64, 10 + 2 / 64]


def test_prompts_are_scored_too(make_shards: Any) -> None:
    shards = make_shards([[0, 5, 6, 0]], [[True, False, True, True]])
    rows = scoring_rows(shards, 8, packed=True)
    assert write_scores(rows, "key", reference(rows, 1)).values.tolist() == [
        0,
        5 + 1 / 64,
        6 + 2 / 64,
        3 / 64,
    ]


def test_scores_are_found_by_their_key(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    key = score_key(shards, "model", 4, packed=True)
    assert cached_scores(shards, key) is None
    rows = scoring_rows(shards, 4, packed=True)
    write_scores(rows, key, reference(rows, 2))
    assert cached_scores(shards, key) is not None


def test_key_changes_with_everything_that_changes_scores(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    other_tokens = make_shards([*DOCUMENTS[:-1], [0, 17, 0]], name="tokens")
    other_borders = make_shards([DOCUMENTS[0] + DOCUMENTS[1], *DOCUMENTS[2:]], name="borders")
    keys = {
        score_key(shards, "model", 4, True),
        score_key(shards, "other", 4, True),
        score_key(shards, "model", 5, True),
        score_key(shards, "model", 4, False),
        score_key(other_tokens, "model", 4, True),
        score_key(other_borders, "model", 4, True),
    }
    assert len(keys) == 6
    assert all(len(key) == 16 for key in keys)
    same = make_shards(
        DOCUMENTS, [[True, False] + [True] * (len(d) - 2) for d in DOCUMENTS], name="s"
    )
    assert score_key(same, "model", 4, True) in keys  # what is masked does not change scores


def test_incomplete_or_broken_scores_are_not_kept(make_shards: Any) -> None:
    shards = make_shards(DOCUMENTS)
    rows = scoring_rows(shards, 4, packed=True)
    chunks = list(reference(rows, 2))
    wrong = {
        "out of 5": chunks[:-1],
        "of 5$": [*chunks, chunks[0]],
        "not finite": [torch.full((5, 4), torch.inf)],
        "for rows": [torch.zeros(5, 3)],
    }
    for message, values in wrong.items():
        with pytest.raises(ValueError, match=message):
            write_scores(rows, "key", iter(values))
        assert cached_scores(shards, "key") is None
    assert not list(shards.path.glob(".tmp*"))


def test_huge_scores_stay_finite(make_shards: Any) -> None:
    rows = scoring_rows(make_shards([[0, 5]]), 1, packed=True)
    assert write_scores(rows, "key", [torch.tensor([[1e9]])]).values.tolist() == [0, 65504]
