"""What figures measured on some units of text or some problems can tell: intervals and tests.

A unit is what was drawn at random: a document, a row, a problem. A figure is a ratio of sums over
units, ``sum(numerator) / sum(denominator)``: nats per token, bits per byte, share of problems. Runs
are compared on the same units, pair by pair, because units differ much more than runs do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL: Final = 0.95
RESAMPLES: Final = 10_000
POWER: Final = 0.8
_FEW_UNITS: Final = 10
# of simulations: with 2, the degrees of freedom of a variance, Wilson's interval is too wide
_FREEDOM: Final = 4.0
_CHUNK: Final = 1 << 22
"""Numbers of resampled units held at a time."""


@dataclass(frozen=True)
class Interval:
    """A figure and where it would fall with other units.

    Attributes:
        value: on the units there are.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the value is certain."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Units:
    """A figure's parts on each unit, ``[N]`` each.

    Raises:
        ValueError: there are none, their numbers differ, or nothing is counted.
    """

    numerators: Floats
    denominators: Floats

    def __post_init__(self) -> None:
        if self.numerators.shape != self.denominators.shape or self.numerators.ndim != 1:
            raise ValueError("numerators and denominators must be two rows of one length")
        if not len(self.numerators) or self.denominators.sum() <= 0:
            raise ValueError("there are no units, or nothing in them is counted")

    @classmethod
    def of(
        cls, numerators: Sequence[float], denominators: Sequence[float] | None = None
    ) -> "Units":
        """From plain lists; without denominators the figure is a mean."""
        above = np.asarray(numerators, dtype=np.float64)
        below = np.ones_like(above) if denominators is None else np.asarray(denominators, float)
        return cls(above, below)

    @property
    def value(self) -> float:
        """The figure."""
        return float(self.numerators.sum() / self.denominators.sum())

    @property
    def each(self) -> Floats:
        """The figure of each unit by itself; NaN where nothing is counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.numerators / self.denominators


def interval(units: Units, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """A bootstrap interval of a figure.

    Units are drawn again with replacement, and percentiles are taken further out than the level
    says, because plain ones are too narrow for few units: as a t distribution is wider than a
    normal one for as many units as there effectively are, ``k = sum(b)^2 / sum(b^2)`` with
    denominators ``b``. A few long documents among many short ones are few. Below ten units, whose
    percentiles end at the outermost of them, it is the t interval itself.

    Source:
        Efron and Tibshirani 1993; Hesterberg 2015 (arXiv:1411.5279), "expanded percentile"; Kish
        1965 for the effective number. Coverage: ``tests/evaluation/test_coverage.py``.

    Example:
        >>> found = interval(Units.of([1.0] * 30 + [0.0] * 70))
        >>> round(found.low, 1), found.value, round(found.high, 1)
        (0.2, 0.3, 0.4)
    """
    drawn = _resample(len(units.numerators), seed, [(units.numerators, units.denominators)])[0]
    return _around(units.value, drawn, _influence(units), units.denominators, level)


def paired_interval(one: Units, other: Units, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """A bootstrap interval of ``one - other``, both measured on the same units; see ``interval``.

    Raises:
        ValueError: the units are not as many.
    """
    if len(one.numerators) != len(other.numerators):
        raise ValueError("the two were measured on different units")
    pairs = [(one.numerators, one.denominators), (other.numerators, other.denominators)]
    mine, theirs = _resample(len(one.numerators), seed, pairs)
    influence = _influence(one) - _influence(other)
    return _around(one.value - other.value, mine - theirs, influence, one.denominators, level)


def mean_share_interval(shares: Sequence[float], *, level: float = LEVEL) -> Interval:
    """An interval of the mean of shares, each of one problem that was tried several times.

    Wilson's interval, for as many independent tries as give a mean of this variance,
    ``m = N p (1 - p) / s^2``. Its reach is that of a t distribution whose degrees of freedom tell
    how well so many shares tell ``s``: few, where a few problems alone are ever solved. A bootstrap
    of such shares is too narrow at both ends, and nothing wide where no problem is solved.

    Source:
        Wilson 1927; Korn and Graubard 1998 (Survey Methodology 24) for clustered shares.

    Raises:
        ValueError: there are none, or one is no share.

    Example:
        >>> found = mean_share_interval([0.5, 0.1, 0.0, 0.0, 0.2] * 20)
        >>> round(found.low, 2), round(found.value, 2), round(found.high, 2)
        (0.13, 0.16, 0.2)
    """
    values = np.asarray(shares, dtype=np.float64)
    count = len(values)
    if not count or values.min() < 0 or values.max() > 1:
        raise ValueError("shares are numbers from 0 to 1, at least one")
    mean = float(values.mean())
    if np.isin(values, (0, 1)).all():
        return share_interval(int(values.sum()), count, level=level)
    squares = (values - mean) ** 2
    if not squares.sum() > 0:
        return _wilson(mean, count, _normal_reach(level))
    tries = count * mean * (1 - mean) / (squares.sum() / max(1, count - 1))
    kurtosis = count * (squares**2).sum() / squares.sum() ** 2
    freedom = max(1.0, _FREEDOM * count / max(kurtosis - 1, 1e-9))
    return _wilson(mean, tries, float(-scipy.stats.t.ppf((1 - level) / 2, freedom)))


def _wilson(mean: float, tries: float, reach: float) -> Interval:
    squared = reach**2 / tries
    middle = (mean + squared / 2) / (1 + squared)
    half = reach / (1 + squared) * np.sqrt((mean * (1 - mean) + squared / 4) / tries)
    return Interval(mean, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def _normal_reach(level: float) -> float:
    return float(-scipy.stats.norm.ppf((1 - level) / 2))


def _influence(units: Units) -> Floats:
    """What each unit moves the figure by, times their number: its variance's first order."""
    below = units.denominators
    return cast(Floats, (units.numerators - units.value * below) / below.mean())


def _resample(count: int, seed: int, pairs: Sequence[tuple[Floats, Floats]]) -> list[Floats]:
    """The figures of ``RESAMPLES`` draws, the same units drawn for each pair."""
    draws = np.random.default_rng(seed)
    found: list[list[Floats]] = [[] for _ in pairs]
    rows = max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, rows):
        index_RN = draws.integers(0, count, (min(rows, RESAMPLES - start), count))
        for place, (above, below) in enumerate(pairs):
            with np.errstate(invalid="ignore", divide="ignore"):
                found[place].append(above[index_RN].sum(1) / below[index_RN].sum(1))
    return [np.concatenate(parts) for parts in found]


def _around(
    value: float, drawn: Floats, influence: Floats, denominators: Floats, level: float
) -> Interval:
    drawn = drawn[np.isfinite(drawn)]  # a draw may hold only units in which nothing is counted
    effective = float(denominators.sum() ** 2 / (denominators**2).sum())
    if effective <= 1 or len(influence) < 2 or not len(drawn):
        return Interval(value, -np.inf, np.inf)
    reach = np.sqrt(effective / (effective - 1)) * scipy.stats.t.ppf((1 - level) / 2, effective - 1)
    if len(influence) < _FEW_UNITS:
        error = np.sqrt((influence**2).sum()) / len(influence)
        return Interval(value, float(value + reach * error), float(value - reach * error))
    tail = float(scipy.stats.norm.cdf(reach))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def share_interval(passed: int, count: int, *, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share of yes and no, which holds where a bootstrap fails: at its ends.

    Source:
        Wilson 1927; Brown, Cai and DasGupta 2001.

    Raises:
        ValueError: there are more passes than trials, or no trials.

    Example:
        >>> share_interval(0, 164).high < 0.03
        True
    """
    if not 0 <= passed <= count or count < 1:
        raise ValueError(f"{passed} of {count} is no share")
    found = scipy.stats.binomtest(passed, count).proportion_ci(level, method="wilson")
    return Interval(passed / count, float(found.low), float(found.high))


def wilcoxon(one: Floats, other: Floats) -> float:
    """p-value of Wilcoxon's signed-rank test on pairs, two-sided; 1 where no pair differs.

    Pairs that do not differ are left out. Exact for up to 50 differing pairs without ties.

    Source:
        Wilcoxon 1945, by SciPy.
    """
    kept = np.isfinite(one) & np.isfinite(other) & (one != other)
    if not kept.any():
        return 1.0
    return float(scipy.stats.wilcoxon(one[kept], other[kept]).pvalue)


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact p-value of McNemar's test, two-sided: of the pairs that differ, half would be each way.

    Args:
        only_one: problems that only the first solves.
        only_other: problems that only the second solves.

    Source:
        McNemar 1947; the exact form is a sign test.

    Example:
        >>> mcnemar(8, 2)
        0.109375
    """
    if only_one + only_other == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_one, only_one + only_other).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that the chance of any false one stays bounded.

    Source:
        Holm 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(np.asarray(p_values), kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def smallest_detectable_difference(one: Units, other: Units, *, level: float = LEVEL) -> float:
    """The difference that a comparison on such units would find four times in five.

    ``(z(1 - (1 - level) / 2) + z(0.8)) * standard error`` of the paired difference, by the delta
    method: the deviation of ``(a_i - A b_i) / mean(b)`` over units, ``A`` the figure.

    Source:
        Card et al. 2020 (arXiv:2010.06595) for why to print it.
    """
    count = len(one.numerators)
    if count < 2:
        return float("inf")

    error = float((_influence(one) - _influence(other)).std(ddof=1) / np.sqrt(count))
    reach = scipy.stats.norm.ppf(1 - (1 - level) / 2) + scipy.stats.norm.ppf(POWER)
    return float(reach) * error


def over_seeds(differences: Sequence[float], *, level: float = LEVEL) -> Interval:
    """A t interval of the mean difference between runs that share a seed, pair by pair.

    What other units would give says nothing about what another seed would give; this does.

    Raises:
        ValueError: there is no pair.
    """
    if not differences:
        raise ValueError("there is no pair of runs")
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, -np.inf, np.inf)
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    reach = float(scipy.stats.t.ppf(1 - (1 - level) / 2, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def coverage(
    measure: Callable[[np.random.Generator], Interval],
    truth: float,
    *,
    simulations: int,
    seed: int = 0,
) -> float:
    """The share of simulated samples whose interval holds the true figure.

    Args:
        measure: draws a sample, and gives the interval that a user would be shown.
    """
    draws = np.random.default_rng(seed)
    found = (measure(draws) for _ in range(simulations))
    return sum(one.low <= truth <= one.high for one in found) / simulations
