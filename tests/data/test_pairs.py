from typing import Any

import numpy as np
import pytest

from wmtp.data.pairs import find_pairs, group_auc
from wmtp.errors import DataError

# documents         0     1     2     3     4     5     6     7     8     9
REWARDS = [1.0, 0.0, None, 1.0, 0.0, 0.5, 1.0, 0.0, 0.51, 0.0]
GROUPS = ["p", "p", "p", "q", "q", "q", None, "r", "s", "q"]
# p: 0 | 1     q: 3 | 4 5 9     r has no correct one, s no incorrect one


@pytest.fixture
def shards(make_shards: Any) -> Any:
    return make_shards([[0, n + 1] for n in range(10)], rewards=REWARDS, groups=GROUPS)


def test_groups_with_both_sides_are_found(shards: Any) -> None:
    pairs = find_pairs(shards)
    assert pairs.problems == 2
    assert pairs.good.tolist() == [0, 3]
    assert pairs.bad.tolist() == [1, 4, 5, 9]
    assert (pairs.good_ends.tolist(), pairs.bad_ends.tolist()) == ([1, 2], [1, 4])
    assert len(pairs) == 1 + 1


def test_pairs_follow_the_rewards_that_are_given(shards: Any) -> None:
    rewards = np.full(10, np.nan, dtype=np.float32)
    rewards[[0, 1]] = 0.2, 0.9  # a reward model thinks the other way round; it read no other
    pairs = find_pairs(shards, rewards)
    assert (pairs.good.tolist(), pairs.bad.tolist()) == ([1], [0])


def test_pairs_are_of_one_problem_and_every_one_comes(shards: Any) -> None:
    good, bad = find_pairs(shards).pair_at(seed=3, position=0, count=4000)
    assert good.dtype == bad.dtype == np.int64
    seen = dict.fromkeys(zip(good.tolist(), bad.tolist(), strict=True), 0)
    for pair in zip(good.tolist(), bad.tolist(), strict=True):
        seen[pair] += 1
    assert set(seen) == {(0, 1), (3, 4), (3, 5), (3, 9)}
    # problems are drawn alike: 2000 and 3 x 667 expected; 5 standard deviations are 158 and 118
    assert abs(seen[0, 1] - 2000) < 158
    assert all(abs(seen[3, bad] - 4000 / 6) < 118 for bad in (4, 5, 9))


def test_sides_are_drawn_independently(make_shards: Any) -> None:
    rewards, groups = [1.0] * 4 + [0.0] * 4, ["p"] * 8
    pairs = find_pairs(make_shards([[0, 1]] * 8, rewards=rewards, groups=groups))
    good, bad = pairs.pair_at(seed=0, position=0, count=8000)
    counts = np.bincount(good * 4 + bad - 4, minlength=16)
    assert len(pairs) == 4
    assert np.abs(counts - 500).max() < 5 * 22  # 22: standard deviation of each


def test_pairs_depend_on_seed_and_position_alone(shards: Any) -> None:
    pairs = find_pairs(shards)
    whole = np.stack(pairs.pair_at(5, 0, 40))
    parts = [np.stack(pairs.pair_at(5, start, 8)) for start in range(0, 40, 8)]
    assert (np.concatenate(parts, 1) == whole).all()
    assert (np.stack(pairs.pair_at(6, 0, 40)) != whole).any()
    assert pairs.pair_at(5, 7, 0)[0].shape == (0,)
    with pytest.raises(ValueError, match="position -1"):
        pairs.pair_at(0, -1, 1)


@pytest.mark.parametrize(
    ("rewards", "groups", "message"),
    [
        (None, ["p", "p"], "has no rewards, so no pairs. Give JSONL lines reward"),
        ([1.0, 0.0], None, "has no groups, so no pairs"),
        ([1.0, 0.0], ["p", "q"], "has no group with a correct document"),
        ([1.0, 1.0], ["p", "p"], "has no group with a correct document"),
        ([1.0, None], ["p", "p"], "has no group with a correct document"),
    ],
)
def test_data_without_pairs_says_what_is_missing(
    make_shards: Any, rewards: Any, groups: Any, message: str
) -> None:
    shards = make_shards([[0, 1], [0, 2]], rewards=rewards, groups=groups)
    with pytest.raises(DataError, match=message):
        find_pairs(shards)


def test_auc_worked_by_hand() -> None:
    """Group 0: good 3, 1 against bad 2, 1: right, right, wrong, tie. Group 7: good 0, bad 5."""
    scores = np.array([3.0, 1.0, 2.0, 1.0, 0.0, 5.0, 9.0, np.nan, 9.0])
    rewards = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, np.nan, 0.0])
    groups = np.array([0, 0, 0, 0, 7, 7, 8, 0, -1])
    assert group_auc(scores, rewards, groups) == (2 + 0.5) / (4 + 1)


@pytest.mark.parametrize("levels", [2, 7, 10**9])
def test_auc_equals_the_count_of_all_pairs(levels: int) -> None:
    generator = np.random.default_rng(levels)
    scores = generator.integers(0, levels, size=400).astype(float)
    rewards = generator.integers(0, 2, size=400).astype(float)
    groups = generator.integers(-1, 9, size=400)
    right = total = 0.0
    for i in range(400):
        for j in range(400):
            if groups[i] == groups[j] >= 0 and rewards[i] == 1 and rewards[j] == 0:
                total += 1
                right += 1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j])
    # sums of halves are exact
    assert group_auc(scores, rewards, groups) == right / total


def test_auc_of_constant_and_perfect_scores() -> None:
    rewards, groups = np.array([1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 1, 1])
    assert group_auc(np.zeros(4), rewards, groups) == 0.5
    assert group_auc(rewards, rewards, groups) == 1.0
    assert group_auc(-rewards, rewards, groups) == 0.0


def test_auc_that_cannot_be_measured() -> None:
    one, two = np.ones(2), np.array([0, 1])
    with pytest.raises(DataError, match="no pair can be measured"):
        group_auc(one, np.array([1.0, 0.0]), two)
    with pytest.raises(DataError, match="no pair can be measured"):
        group_auc(np.zeros(0), np.zeros(0), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="not a number"):
        group_auc(np.array([1.0, np.nan]), np.array([1.0, 0.0]), np.array([0, 0]))
    with pytest.raises(ValueError, match="shapes"):
        group_auc(one, np.ones(3), two)


def test_real_contest_pairs(real_data: Any, tmp_path: Any, tokenizer: Any) -> None:
    from wmtp.data.prepare import prepare_cached
    from wmtp.data.sources import Source

    source = Source(str(real_data / "code/contest_format.jsonl"), solutions="all")
    shards = prepare_cached([source], tokenizer, tmp_path)
    pairs = find_pairs(shards)
    assert pairs.problems == 2
    assert len(pairs) == 352 + 162
    good, bad = pairs.pair_at(seed=0, position=0, count=64)
    assert shards.groups is not None
    assert shards.rewards is not None
    assert (shards.groups[good] == shards.groups[bad]).all()
    assert (shards.rewards[good] == 1).all()
    assert (shards.rewards[bad] == 0).all()


def test_rewards_of_a_model_make_other_pairs(shards: Any) -> None:
    """A reward that is not a number takes a document out, whatever the data say of it."""
    rewards = np.array([0.2, 0.9] + [np.nan] * 8, dtype=np.float32)
    pairs = find_pairs(shards, rewards)
    assert (pairs.good.tolist(), pairs.bad.tolist()) == ([1], [0])
