"""Pairs of a correct and an incorrect document for the same problem, and how well scores part them.

Which pair comes when is a pure function of seed and position, as in ``order.py``.
"""

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from wmtp.data.order import splitmix64
from wmtp.data.shards import Shards
from wmtp.errors import DataError

CORRECT_ABOVE: Final = 0.5
"""A document is correct if its reward is above this, incorrect if it has another one."""

_GOOD, _BAD = np.uint64(1), np.uint64(2)  # which draw a hash is for


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """The problems of some shards that have correct and incorrect documents.

    Attributes:
        good: indices of the correct documents, problem after problem, int64.
        bad: of the incorrect ones.
        good_ends: for each problem the position in ``good`` after its last one.
        bad_ends: the same in ``bad``.
    """

    good: NDArray[np.int64]
    bad: NDArray[np.int64]
    good_ends: NDArray[np.int64]
    bad_ends: NDArray[np.int64]

    @property
    def problems(self) -> int:
        """How many problems there are."""
        return len(self.good_ends)

    def __len__(self) -> int:
        """Pairs in an epoch: as many as could be made if no document were used twice."""
        return int(np.minimum(_counts(self.good_ends), _counts(self.bad_ends)).sum())

    def pair_at(
        self, seed: int, position: int, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pairs at positions ``position .. position + count - 1`` of an endless stream.

        For each a problem is drawn, every one as likely as any other however many programs it has,
        and then one document of either side.

        Args:
            seed: of the stream.
            position: of the first pair.
            count: B, how many pairs.

        Returns:
            Indices of the correct documents and of the incorrect ones, int64 ``[B]`` each.

        Raises:
            ValueError: a number is negative.
        """
        if seed < 0 or position < 0 or count < 0:
            raise ValueError(f"seed {seed}, position {position}, count {count}")
        key = splitmix64(np.array([seed], dtype=np.uint64))
        draws = splitmix64(np.arange(position, position + count, dtype=np.uint64) ^ key)
        problems = _below(draws, np.array(self.problems))
        return (
            _draw(self.good, self.good_ends, problems, draws ^ _GOOD),
            _draw(self.bad, self.bad_ends, problems, draws ^ _BAD),
        )


def find_pairs(shards: Shards, rewards_N: NDArray[np.float32] | None = None) -> Pairs:
    """The problems of shards that have a correct and an incorrect document at least.

    Args:
        shards: the documents and their groups.
        rewards_N: a reward per document, NaN for none, such as a reward model's; the data's own
            if None.

    Raises:
        DataError: there is none, or the documents have no rewards or no groups.
    """
    advice = (
        "Give JSONL lines reward (or is_correct) and group, or read a contest with solutions: all."
    )
    rewards_N = shards.rewards if rewards_N is None else rewards_N
    if rewards_N is None or shards.groups is None:
        missing = "rewards" if rewards_N is None else "groups"
        raise DataError(f"the data in '{shards.path}' has no {missing}, so no pairs. {advice}")
    good, bad = _sides(rewards_N, shards.groups)
    both = np.intersect1d(shards.groups[good], shards.groups[bad])
    if not len(both):
        raise DataError(
            f"the data in '{shards.path}' has no group with a correct document (reward above "
            f"{CORRECT_ABOVE}) and an incorrect one, so no pairs. {advice}"
        )
    (good, good_ends), (bad, bad_ends) = (
        _of_groups(side, shards.groups, both) for side in (good, bad)
    )
    return Pairs(good, bad, good_ends, bad_ends)


def group_auc(
    scores_N: NDArray[np.floating[Any]],
    rewards_N: NDArray[np.floating[Any]],
    groups_N: NDArray[np.integer[Any]],
) -> float:
    """Share of pairs, one correct and one incorrect of the same group, that scores order rightly.

        AUC = (pairs with the correct one higher + half of those with equal scores) / all pairs

    Computed from ranks within each group, so exact however many pairs there are.

    Args:
        scores_N: a score per document, finite wherever the document has a reward and a group.
        rewards_N: above 0.5 is correct; NaN takes the document out.
        groups_N: index of the group; below 0 takes the document out.

    Returns:
        From 0 to 1; 0.5 is what constant scores get.

    Raises:
        DataError: no group has both a correct and an incorrect document.
        ValueError: the three differ in shape, or a score is not a number.

    Source:
        Mann and Whitney 1947, with midranks for ties.

    Example:
        Of the group's two pairs one is in order and one is a tie.

        >>> group_auc(np.array([2.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0]), np.array([0, 0, 0]))
        0.75
    """
    if not scores_N.shape == rewards_N.shape == groups_N.shape:
        raise ValueError(f"shapes {scores_N.shape}, {rewards_N.shape}, {groups_N.shape}")
    competes = ~np.isnan(rewards_N) & (groups_N >= 0)
    scores, is_good = scores_N[competes], rewards_N[competes] > CORRECT_ABOVE
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
    _, group = np.unique(groups_N[competes], return_inverse=True)
    n_good = np.bincount(group, weights=is_good)
    n_bad = np.bincount(group, weights=~is_good)
    pairs = float((n_good * n_bad).sum())
    if not pairs:
        raise DataError(
            "no group has both a correct and an incorrect document, so no pair can be measured."
        )
    rank_sums = np.bincount(group, weights=_midranks(scores, group) * is_good)
    # a correct one's rank counts, besides what it beats, itself and the correct ones below it
    return float((rank_sums - n_good * (n_good + 1) / 2).sum() / pairs)


def _midranks(scores: NDArray[Any], group: NDArray[np.intp]) -> NDArray[np.float64]:
    """Rank of each score within its group, from 1; equal ones share the mean of their ranks."""
    order = np.lexsort((scores, group))
    sorted_scores, sorted_group = scores[order], group[order]
    is_new_group = np.diff(sorted_group, prepend=-1) != 0
    is_new = is_new_group.copy()
    is_new[1:] |= sorted_scores[1:] != sorted_scores[:-1]
    firsts = np.flatnonzero(is_new)
    lasts = np.append(firsts[1:], len(order)) - 1
    group_start = np.maximum.accumulate(np.where(is_new_group, np.arange(len(order)), 0))[firsts]
    ranks = np.empty(len(order))
    ranks[order] = np.repeat((firsts + lasts) / 2 - group_start + 1, lasts - firsts + 1)
    return ranks


def _sides(
    rewards: NDArray[np.float32], groups: NDArray[np.int32]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The correct and the incorrect documents that compete within a group."""
    competes = ~np.isnan(rewards) & (groups >= 0)
    is_correct = rewards > CORRECT_ABOVE
    return np.flatnonzero(competes & is_correct), np.flatnonzero(competes & ~is_correct)


def _of_groups(
    documents: NDArray[np.intp], groups: NDArray[np.int32], kept: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The documents of the groups that are kept, group after group, and where each group ends."""
    documents = documents[np.isin(groups[documents], kept)]
    documents = documents[np.argsort(groups[documents], kind="stable")]
    return documents, np.searchsorted(groups[documents], kept, side="right")


def _counts(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.diff(ends, prepend=0)
    return counts


def _draw(
    documents: NDArray[np.int64],
    ends: NDArray[np.int64],
    problems: NDArray[np.int64],
    draws: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """A document of each problem."""
    counts = _counts(ends)
    first = ends - counts
    chosen: NDArray[np.int64] = documents[
        first[problems] + _below(splitmix64(draws), counts[problems])
    ]
    return chosen


def _below(draws: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers from 0 to below each count."""
    return (draws % counts.astype(np.uint64)).astype(np.int64)
