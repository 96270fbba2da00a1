from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.corpus.duplicates.buckets import Buckets

NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1), st.integers(2**64 - 3, 2**64 - 1))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20), max_size=4),
       st.integers(100, 4000), st.integers(1, 2000))  # fmt: skip
def test_rows_come_back_sorted_and_cut_between_keys(
    parts: list[list[tuple[int, int]]], memory: int, expected: int
) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "rows"
        with Buckets(folder, 2, 2**64 - 1, expected, memory) as buckets:
            for part in parts:
                buckets.add(np.array(part, np.uint64).reshape(-1, 2))
            pieces = [piece.copy() for piece in buckets.sorted()]
        assert not folder.exists()
    rows = [tuple(row) for piece in pieces for row in piece.tolist()]
    assert rows == sorted(row for part in parts for row in part)
    keys = [{row[0] for row in piece.tolist()} for piece in pieces]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_pieces_fit_into_the_memory(tmp_path: Path) -> None:
    """Also where all keys are in a narrow range that nobody expected."""
    rows = np.random.default_rng(0).integers(1000, 2000, (20_000, 2)).astype(np.uint64)
    with Buckets(tmp_path / "rows", 2, 2**64 - 1, 16, 40_000) as buckets:
        buckets.add(rows)
        sizes = [piece.nbytes for piece in buckets.sorted()]
    assert sum(sizes) == rows.nbytes
    assert max(sizes) <= 10_000


def test_files_are_removed_when_something_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Buckets(tmp_path / "rows", 1, 10, 10, 10) as buckets:  # noqa: PT012
        buckets.add(np.ones((3, 1), np.uint64))
        raise KeyError
    assert not (tmp_path / "rows").exists()
