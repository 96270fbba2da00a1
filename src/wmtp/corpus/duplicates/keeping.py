"""Which of the documents that may be alike stay: decided in order, compared by any process."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from wmtp.corpus.duplicates.buckets import Buckets
from wmtp.corpus.duplicates.groups import Groups
from wmtp.corpus.duplicates.outcome import Duplicates, DuplicateSettings
from wmtp.corpus.duplicates.signatures import jaccard
from wmtp.corpus.duplicates.sketches import Sketches
from wmtp.corpus.duplicates.texts import RecentShingles, TextOf
from wmtp.runtime.pool import Run

_PAIRS_AT_A_TIME: Final = 1 << 15
_BYTES_OF_A_SHINGLE: Final = 120

Candidate: TypeAlias = tuple[int, float, int]
"""An earlier document, its estimated similarity, and the lowest number of its group so far."""


def keep_first(
    pairs: Buckets,
    sketches: Sketches,
    text_of: TextOf,
    found: Duplicates,
    settings: DuplicateSettings,
    run: Run,
) -> None:
    """Go through all documents in order and drop those that are like an earlier, kept one.

    Whether two are alike does not depend on what becomes of others: so it is found out ahead, by
    whom ``run`` lets work, for all pairs that may still matter. The decisions are made here.

    Args:
        pairs: of a later and an earlier document that may be alike; some may stand there twice.
        sketches: of all documents.
        text_of: the comparable text of a document.
        found: is completed.
        settings: see there.
        run: compares.
    """
    groups = Groups(found.link)
    compare = _Comparer(text_of, settings)

    def tasks() -> Iterator[_Comparisons]:
        some: list[tuple[int, list[Candidate]]] = []
        count = 0
        for later, candidates in _candidates(pairs, sketches):
            kept = [
                (earlier, estimate, groups.root(earlier))
                for earlier, estimate in candidates
                if not found.percent[earlier]
            ]
            some.append((later, kept))
            count += len(kept)
            if count >= _PAIRS_AT_A_TIME:
                yield _Comparisons(text_of, settings, some)
                some, count = [], 0
        yield _Comparisons(text_of, settings, some)

    for compared in run(_compare, tasks(), in_order=True):
        for later, candidates, values in compared:
            alike: set[int] = set()
            for (earlier, estimate, _), known in itertools.zip_longest(candidates, values):
                if found.percent[earlier]:
                    continue
                group = groups.root(earlier)
                if group in alike and estimate < settings.surely:
                    continue
                # not known where another decision was foreseen
                value = compare(later, earlier, estimate) if known is None else known
                if value >= settings.threshold:
                    found.link[later] = earlier
                    found.percent[later] = max(round(100 * value), 1)
                    break
                if value >= settings.group_threshold:
                    alike.add(group)
            else:
                for group in alike:
                    groups.join(later, group)


@dataclass(frozen=True, slots=True)
class _Comparisons:
    """Documents with the earlier ones that each is to be compared with."""

    text_of: TextOf
    settings: DuplicateSettings
    documents: list[tuple[int, list[Candidate]]]


def _compare(
    _: object, task: _Comparisons
) -> list[tuple[int, list[Candidate], list[float | None]]]:
    """The similarities that decide about each document, if what is kept so far stays so.

    None stands for a pair that need not be compared, and at the first repetition a list ends.
    """
    settings = task.settings
    compare = _Comparer(task.text_of, settings)
    compared = []
    for later, candidates in task.documents:
        values: list[float | None] = []
        alike: set[int] = set()
        for earlier, estimate, group in candidates:
            # an unlikely repetition only matters for the groups, once
            if group in alike and estimate < settings.surely:
                values.append(None)
                continue
            value = compare(later, earlier, estimate)
            values.append(value)
            if value >= settings.threshold:
                break
            if value >= settings.group_threshold:
                alike.add(group)
        compared.append((later, candidates, values))
    return compared


class _Comparer:
    """Similarity of two documents, by their shingles, of which the last ones are kept."""

    def __init__(self, text_of: TextOf, settings: DuplicateSettings) -> None:
        self._longest = settings.longest
        self._shingles = RecentShingles(
            text_of, settings.shape.characters, settings.memory_bytes // _BYTES_OF_A_SHINGLE
        )

    def __call__(self, one: int, other: int, estimate: float) -> float:
        first, second = self._shingles(one), self._shingles(other)
        if max(len(first), len(second)) > self._longest:
            return estimate
        return jaccard(first, second)


def _candidates(
    pairs: Buckets, sketches: Sketches
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Each document that has any, and the earlier ones to compare it with, in ascending order."""
    for rows in pairs.sorted():
        fresh = np.ones(len(rows), bool)
        fresh[1:] = (rows[1:] != rows[:-1]).any(axis=1)
        distinct = rows[fresh].astype(np.intp)
        # cut at documents, so that a piece holds all pairs of each
        borders = np.flatnonzero(np.diff(distinct[:, 0], prepend=-1, append=-1))
        for start, end in itertools.pairwise(borders):
            later, earlier = distinct[start:end].T
            close = sketches.estimates(later, earlier)
            yield int(later[0]), list(zip(earlier.tolist(), close.tolist(), strict=True))
