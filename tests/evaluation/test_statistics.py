"""Intervals and tests against SciPy, worked cases and simulations whose truth is known."""

import numpy as np
import pytest
import scipy.stats

from wmtp.evaluation import statistics
from wmtp.evaluation.statistics import (
    Units,
    coverage,
    holm,
    interval,
    mcnemar,
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


def solved(draws: np.random.Generator) -> Units:
    """164 problems of different difficulty, ten tries each."""
    return Units.of((draws.binomial(10, draws.beta(0.6, 1.4, 164)) / 10).tolist())


@pytest.mark.parametrize(("sample", "truth"), [(docs, 3.2), (solved, 0.3)])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(
    sample: object, truth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """95 % +- 1.5 in 2,000 simulations, where chance alone moves the share by 0.5."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    share = coverage(sample, truth, simulations=2000)  # type: ignore[arg-type]
    assert 0.935 <= share <= 0.965


def test_the_simulation_would_find_an_interval_that_is_too_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One for 90 % in place of 95."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    narrow = statistics.interval
    monkeypatch.setattr(
        statistics, "interval", lambda units, *, seed: narrow(units, level=0.9, seed=seed)
    )
    assert coverage(solved, 0.3, simulations=1000) < 0.935


def test_shares_have_wilsons_interval() -> None:
    """HumanEval at 0.3: 0.23 to 0.37."""
    found = share_interval(49, 164)
    assert (round(found.low, 2), round(found.high, 2)) == (0.23, 0.37)
    truth, hits = 0.1, 0
    for passed in DRAWS.binomial(164, truth, 4000):
        one = share_interval(int(passed), 164)
        hits += one.low <= truth <= one.high
    assert 0.935 <= hits / 4000 <= 0.965
    with pytest.raises(ValueError, match="5 of 4 is no share"):
        share_interval(5, 4)


def test_pairs_tell_apart_what_single_intervals_cannot() -> None:
    """A difference of 0.02 nats between models whose documents differ by half a nat."""
    base = docs(DRAWS)
    shift = DRAWS.normal(0.02, 0.03, 100) * base.denominators
    other = Units(base.numerators - shift, base.denominators)
    assert interval(base).low < interval(other).value < interval(base).high
    difference = paired_interval(other, base)
    assert difference.high < 0
    assert wilcoxon(other.each, base.each) < 1e-6
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
