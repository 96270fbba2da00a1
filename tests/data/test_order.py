import numpy as np
import pytest

from wmtp.data.order import permutation, rows_at, splitmix64


def test_every_row_once_per_epoch() -> None:
    order = rows_at(97, seed=3, start=0, count=97 * 4).reshape(4, 97)
    for epoch in order:
        assert sorted(epoch.tolist()) == list(range(97))
    assert len({tuple(epoch.tolist()) for epoch in order}) == 4


@pytest.mark.parametrize("start", [0, 1, 6, 7, 20])
def test_started_anywhere_it_is_the_same_order(start: int) -> None:
    whole = rows_at(7, seed=1, start=0, count=40)
    np.testing.assert_array_equal(rows_at(7, seed=1, start=start, count=20), whole[start:][:20])


def test_seeds_differ_and_large_ones_work() -> None:
    orders = {tuple(rows_at(50, seed, 0, 50).tolist()) for seed in (0, 1, 2**32, 2**63 - 1)}
    assert len(orders) == 4


def test_order_is_fixed_for_ever() -> None:
    # resuming a run with a later version must read the same rows
    expected = [0, 1, 6, 3, 5, 4, 2, 7, 3, 0, 1, 5, 2, 7, 4, 6]
    assert rows_at(8, seed=0, start=0, count=16).tolist() == expected


def test_first_rows_are_spread_evenly() -> None:
    firsts = np.array([permutation(10, seed, 0)[0] for seed in range(2000)])
    counts = np.bincount(firsts, minlength=10)
    assert counts.min() > 140  # 200 expected, standard deviation 13
    assert counts.max() < 260


def test_published_values_of_splitmix64() -> None:
    # the generator's first three outputs for the seed 1234567 (Vigna's splitmix64.c)
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + n * gamma) % 2**64 for n in range(3)], dtype=np.uint64)
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_caller_cannot_change_the_order() -> None:
    order = permutation(5, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


def test_impossible_numbers_are_refused() -> None:
    for numbers in ((0, 0, 0, 1), (5, -1, 0, 1), (5, 0, -1, 1)):
        with pytest.raises(ValueError, match="n_rows"):
            rows_at(*numbers)
