"""Intervals and tests against SciPy, worked cases and simulations whose truth is known."""

import numpy as np
import pytest
import scipy.stats

from wmtp.evaluation.statistics import (
    Units,
    holm,
    interval,
    mcnemar,
    mean_share_interval,
    over_seeds,
    paired_interval,
    share_interval,
    smallest_detectable_difference,
    wilcoxon,
)

DRAWS = np.random.default_rng(7)


def test_a_figure_is_a_ratio_of_sums_and_not_a_mean_of_ratios() -> None:
    assert Units.of([10.0, 1.0], [10.0, 4.0]).value == pytest.approx(11 / 14)
    assert Units.of([1.0, 0.0, 1.0, 1.0]).value == 0.75


def test_an_interval_is_near_scipys_bootstrap() -> None:
    sample = DRAWS.normal(3.0, 1.0, 200)
    found = interval(Units.of(sample.tolist()))
    theirs = scipy.stats.bootstrap(
        (sample,), np.mean, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(sample.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def docs(draws: np.random.Generator, count: int = 100) -> Units:
    """Documents of very different lengths, whose cross-entropy does not depend on it."""
    tokens = draws.lognormal(5.5, 0.8, count).round() + 5
    return Units.of((tokens * draws.normal(3.2, 0.5, count)).tolist(), tokens.tolist())


def test_shares_have_wilsons_interval() -> None:
    """HumanEval at 0.3: 0.23 to 0.37."""
    found = share_interval(49, 164)
    assert (round(found.low, 2), round(found.high, 2)) == (0.23, 0.37)
    with pytest.raises(ValueError, match="5 of 4 is no share"):
        share_interval(5, 4)


def test_shares_of_several_tries_are_as_wilsons_where_tries_are_alike() -> None:
    """Worked by hand: shares 0.4 and 0.6 by turns vary as 24.7 tries of each problem would."""
    shares = [0.4, 0.6] * 20
    found = mean_share_interval(shares)
    tries = 40 * 0.25 / (0.01 * 40 / 39)
    assert tries == pytest.approx(975)
    wilson = share_interval(500, 1000)
    assert found.value == pytest.approx(0.5)
    assert (found.high - found.low) == pytest.approx(
        (wilson.high - wilson.low) * np.sqrt(1000 / 975), rel=0.01
    )
    assert mean_share_interval([1.0, 0.0, 0.0]) == share_interval(1, 3)
    assert mean_share_interval([0.0] * 50).high > 0.05, "none of 50 is not none of all"
    same = mean_share_interval([0.5] * 30)
    assert same.low < 0.4 < 0.6 < same.high
    for impossible in ([], [1.5], [-0.1]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            mean_share_interval(impossible)


def test_a_few_long_documents_are_few() -> None:
    """Ninety short documents beside two long ones tell no more than the two."""
    nats = DRAWS.normal(3, 0.5, 92)
    alike = np.full(92, 100.0)
    long = alike.copy()
    long[:2] = 40_000.0
    one, other = (interval(Units(nats * tokens, tokens)) for tokens in (alike, long))
    assert other.high - other.low > 2 * (one.high - one.low)


def test_few_units_have_the_t_interval() -> None:
    sample = [1.0, 2.0, 4.0, 3.0]
    found = interval(Units.of(sample))
    theirs = scipy.stats.t.interval(0.95, 3, 2.5, scipy.stats.sem(sample))
    assert (found.low, found.high) == pytest.approx(theirs)
    assert interval(Units.of([1.0])).high == np.inf


def test_pairs_tell_apart_what_single_intervals_cannot() -> None:
    """A difference of 0.02 nats between models whose documents differ by half a nat."""
    base = docs(DRAWS)
    shift = DRAWS.normal(0.02, 0.03, 100) * base.denominators
    other = Units(base.numerators - shift, base.denominators)
    assert interval(base).low < interval(other).value < interval(base).high
    difference = paired_interval(other, base)
    assert difference.high < 0
    assert wilcoxon(other.each, base.each) < 1e-4
    assert 0 < smallest_detectable_difference(other, base) < 0.02


def test_a_model_against_itself_is_no_difference() -> None:
    base = docs(DRAWS)
    difference = paired_interval(base, base)
    assert (difference.low, difference.value, difference.high) == (0, 0, 0)
    assert not difference.excludes_zero
    assert wilcoxon(base.each, base.each) == 1
    assert smallest_detectable_difference(base, base) == 0


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Two models that differ by noise alone: 5 % of intervals and p-values say otherwise."""
    alarms = 0
    for _ in range(400):
        tokens = DRAWS.integers(50, 400, 80).astype(float)
        one, other = (Units(tokens * DRAWS.normal(3, 0.3, 80), tokens) for _ in range(2))
        alarms += wilcoxon(one.each, other.each) < 0.05
    assert 4 <= alarms <= 38


def test_power_is_what_the_detectable_difference_says() -> None:
    """A true difference of that size is found about four times in five."""
    found = 0
    tokens = np.full(100, 50.0)
    for _ in range(300):
        noise = DRAWS.normal(0, 0.2, 100)
        one = Units(tokens * (3 + 0.0561 + noise), tokens)  # 2.80 * 0.2 / 10
        difference = one.each - 3
        error = difference.std(ddof=1) / 10
        found += abs(difference.mean()) > 1.96 * error
    assert smallest_detectable_difference(one, Units(tokens * 3, tokens)) == pytest.approx(
        0.056, rel=0.25
    )
    assert 0.7 <= found / 300 <= 0.9


def test_tests_agree_with_worked_cases() -> None:
    """Holm 1979 by hand; McNemar against the binomial; Wilcoxon 1945's own example of wheat."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert mcnemar(8, 2) == pytest.approx(2 * sum(scipy.stats.binom.pmf([0, 1, 2], 10, 0.5)))
    assert mcnemar(0, 0) == 1
    one = np.array([8.0, 7, 6, 9, 5, 7, 8, 6])
    other = one - np.array([1.1, 0.4, -0.2, 2.3, 0.7, 1.6, 0.9, 0.3])
    # by hand: the only negative difference has rank 1; 2 of 256 signs are as extreme on each side
    assert wilcoxon(one, other) == pytest.approx(4 / 256)


def test_seeds_are_asked_by_a_t_interval() -> None:
    found = over_seeds([0.1, 0.2, 0.3])
    theirs = scipy.stats.t.interval(0.95, 2, 0.2, scipy.stats.sem([0.1, 0.2, 0.3]))
    assert (found.low, found.high) == pytest.approx(theirs)
    assert not over_seeds([0.5]).excludes_zero


def test_what_cannot_be_a_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="no units"):
        Units.of([])
    with pytest.raises(ValueError, match="nothing in them is counted"):
        Units.of([0.0], [0.0])
    with pytest.raises(ValueError, match="different units"):
        paired_interval(Units.of([1.0]), Units.of([1.0, 2.0]))
