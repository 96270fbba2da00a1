"""Of a hundred intervals that are shown for 95 %, ninety-five hold the truth.

``make judge-check`` simulates every case below and prints a table; ``make test`` a few, with fewer
samples. Chance alone moves the share by half a point in 2,000 samples.
"""

import os
from collections.abc import Callable

import numpy as np
import pytest

from wmtp.evaluation import statistics
from wmtp.evaluation.statistics import (
    Interval,
    Units,
    coverage,
    interval,
    mean_share_interval,
    over_seeds,
    paired_interval,
    share_interval,
)

FULL = os.environ.get("WMTP_JUDGE_CHECK") == "full"
SIMULATIONS = 2000 if FULL else 600
Draws = np.random.Generator
Case = tuple[str, Callable[[Draws], Interval], float]


def documents(count: int, spread: float) -> Case:
    """Documents of lognormal length, whose cross-entropy does not depend on it."""

    def measure(draws: Draws) -> Interval:
        tokens = draws.lognormal(5.5, spread, count).round() + 5
        nats = tokens * draws.normal(3.2, 0.5, count)
        return interval(Units(nats, tokens), seed=int(draws.integers(1 << 30)))

    return f"cross-entropy, {count} documents, lengths' spread {spread}", measure, 3.2


def document_pairs(count: int, spread: float) -> Case:
    """The difference of two models on the same documents."""

    def measure(draws: Draws) -> Interval:
        tokens = draws.lognormal(5.5, spread, count).round() + 5
        one = draws.normal(3.2, 0.5, count)
        other = one + draws.normal(-0.02, 0.05, count)
        units = (Units(tokens * nats, tokens) for nats in (other, one))
        return paired_interval(*units, seed=int(draws.integers(1 << 30)))

    return f"difference of it, {count} documents, lengths' spread {spread}", measure, -0.02


def problems(count: int, rate: float, tries: int) -> Case:
    """pass@1 of problems of different difficulty."""

    def measure(draws: Draws) -> Interval:
        chances = draws.beta(2 * rate, 2 * (1 - rate), count)
        return mean_share_interval((draws.binomial(tries, chances) / tries).tolist())

    return f"pass@1 near {rate}, {count} problems, {tries} tries", measure, rate


def problem_pairs(count: int, rate: float, tries: int) -> Case:
    """The difference of two models, for which most problems are as hard."""

    def measure(draws: Draws) -> Interval:
        one = draws.beta(2 * rate, 2 * (1 - rate), count)
        other = np.where(
            draws.random(count) < 0.8, one, draws.beta(2 * rate, 2 * (1 - rate), count)
        )
        units = (Units.of((draws.binomial(tries, p) / tries).tolist()) for p in (one, other))
        return paired_interval(*units, seed=int(draws.integers(1 << 30)))

    return f"difference of it near {rate}, {count} problems, {tries} tries", measure, 0.0


def plain_share(count: int, rate: float) -> Case:
    return (
        f"share near {rate} of {count}",
        lambda draws: share_interval(int(draws.binomial(count, rate)), count),
        rate,
    )


def seeds(count: int) -> Case:
    return (
        f"difference over {count} seeds",
        lambda draws: over_seeds(draws.normal(0.1, 0.03, count).tolist()),
        0.1,
    )


FEW: list[Case] = [
    documents(20, 0.8),
    document_pairs(12, 0.8),
    problems(164, 0.3, 10),
    problems(164, 0.05, 10),
    problem_pairs(164, 0.3, 10),
    plain_share(164, 0.3),
    seeds(3),
]
MORE: list[Case] = [
    *(documents(count, spread) for count in (5, 8, 12, 40, 100) for spread in (0.3, 0.8, 1.2)),
    *(document_pairs(count, spread) for count in (8, 40, 100) for spread in (0.3, 1.2)),
    *(problems(count, rate, 10) for count in (50, 164, 500) for rate in (0.05, 0.3)),
    *(problems(count, 0.3, 2) for count in (50, 164, 500)),
    *(problem_pairs(count, 0.3, tries) for count in (50, 164, 500) for tries in (1, 10)),
    *(problem_pairs(count, 0.05, 10) for count in (164, 500)),
    *(plain_share(count, rate) for count in (164, 500) for rate in (0.1, 0.5)),
    *(seeds(count) for count in (2, 5)),
]


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 500)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """95 % +- 1.5, and what chance alone may add: three of its standard deviations."""
    chance = 3 * np.sqrt(0.95 * 0.05 / SIMULATIONS)
    wrong, table = [], ["| interval | coverage |", "|---|---|"]
    for name, measure, truth in [*FEW, *MORE] if FULL else FEW:
        share = coverage(measure, truth, simulations=SIMULATIONS, seed=3)
        table.append(f"| {name} | {100 * share:.1f} % |")
        if abs(share - 0.95) > 0.015 + chance:
            wrong.append(table[-1])
    if FULL:
        with capsys.disabled():
            print("\n" + "\n".join(table))
    assert wrong == []


def test_the_simulation_would_find_intervals_that_are_too_narrow() -> None:
    """Those for 88 % in place of 95, and a bootstrap of shares of which few are above 0."""
    count, rate = 164, 0.3

    def narrow(draws: Draws) -> Interval:
        passed = draws.binomial(10, draws.beta(0.6, 1.4, count)) / 10
        return mean_share_interval(passed.tolist(), level=0.88)

    assert coverage(narrow, rate, simulations=600) < 0.92

    def bootstrap(draws: Draws) -> Interval:
        passed = draws.binomial(10, draws.beta(0.05, 4.95, 50)) / 10
        return interval(Units.of(passed.tolist()), seed=int(draws.integers(1 << 30)))

    assert coverage(bootstrap, 0.01, simulations=300) < 0.9


def test_shares_that_are_rare_have_an_interval_that_is_wide_enough() -> None:
    """Where a handful of problems is ever solved, no interval has exactly 95 %."""
    for count, rate in ((50, 0.05), (50, 0.01), (164, 0.01)):
        _, measure, truth = problems(count, rate, 10)
        assert coverage(measure, truth, simulations=600, seed=5) > 0.92, (count, rate)
