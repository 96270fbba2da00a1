import itertools
from fractions import Fraction

import pytest

from wmtp.evaluation.pass_at_k import pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_it_is_the_share_of_draws_that_have_a_right_one(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == Fraction(sum(map(any, draws)), len(draws))


def test_it_is_exact_where_floats_are_not() -> None:
    assert pass_at_k(200, 3, 1) == Fraction(3, 200)
    assert 1 - pass_at_k(10_000, 1, 9_999) == Fraction(1, 10_000)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1)])
def test_what_cannot_be_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples|at least"):
        pass_at_k(n, c, k)
