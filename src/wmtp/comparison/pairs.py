"""Groups of runs against a baseline, figure by figure, on the same units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from wmtp.comparison.results import Figure, Run
from wmtp.errors import DataError
from wmtp.evaluation.statistics import (
    LEVEL,
    Interval,
    Units,
    holm,
    interval,
    mcnemar,
    mean_share_interval,
    over_seeds,
    paired_interval,
    smallest_detectable_difference,
    wilcoxon,
)

Verdict = Literal["baseline", "better", "worse", "not distinguishable"]
SEEDS_TO_KNOW: Final = 2


@dataclass(frozen=True)
class Line:
    """One group of runs and one figure.

    Attributes:
        figure: its name.
        group: runs that differ in their seed alone.
        seeds: how many runs.
        value: the figure, with an interval over units.
        difference: to the baseline, over units; None for the baseline.
        between_seeds: the same over seeds; None with fewer than two seeds in common.
        p_value: Wilcoxon's over units, McNemar's where each problem was tried once; adjusted by
            Holm over the groups compared with this baseline.
        detectable: the difference that units like these would show four times in five.
        verdict: better or worse only if both intervals exclude zero and the p-value is small.
    """

    figure: str
    group: str
    seeds: int
    value: Interval
    difference: Interval | None = None
    between_seeds: Interval | None = None
    p_value: float | None = None
    detectable: float | None = None
    verdict: Verdict = "baseline"


def compare(runs: Sequence[Run]) -> list[Line]:
    """Compare every group with that of the first run.

    Figures that only some runs have are compared among those, if the first is one of them.

    Raises:
        DataError: two runs were not measured on the same data.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    lines: list[Line] = []
    for name in runs[0].figures:
        having = {
            group: members
            for group, members in groups.items()
            if all(name in run.figures for run in members)
        }
        if runs[0].group in having:
            lines += _compare_figure(name, having)
    return lines


def _compare_figure(name: str, groups: dict[str, list[Run]]) -> list[Line]:
    (first, base), *others = groups.items()
    _check_same_units(name, [run for members in groups.values() for run in members])
    lines = [Line(name, first, len(base), _value(name, base))]
    drafts = []
    for group, members in others:
        one, other = _mean_units(name, members), _mean_units(name, base)
        drafts.append(
            (
                group,
                members,
                paired_interval(one, other),
                _between_seeds(name, members, base),
                _p_value(name, members, base),
                smallest_detectable_difference(one, other),
            )
        )
    adjusted = holm([p for *_, p, _ in drafts])
    less_is_better = base[0].figures[name].less_is_better
    for (group, members, difference, between, _, detectable), p in zip(
        drafts, adjusted, strict=True
    ):
        lines.append(
            Line(
                name,
                group,
                len(members),
                _value(name, members),
                difference,
                between,
                p,
                detectable,
                _verdict(difference, between, p, less_is_better),
            )
        )
    return lines


def _check_same_units(name: str, runs: Sequence[Run]) -> None:
    first = runs[0].figures[name]
    for run in runs[1:]:
        other = run.figures[name]
        same = first.keys == other.keys and np.array_equal(
            first.units.denominators, other.units.denominators
        )
        if not same:
            raise DataError(
                f"{name} of '{run.name}' was not measured on the data of '{runs[0].name}'. "
                "Evaluate both on the same sources, with the same --max-length."
            )


def _mean_units(name: str, runs: Sequence[Run]) -> Units:
    """Parts of each unit, averaged over the seeds."""
    numerators = np.mean([run.figures[name].units.numerators for run in runs], axis=0)
    return Units(numerators, runs[0].figures[name].units.denominators)


def _value(name: str, runs: Sequence[Run]) -> Interval:
    units = _mean_units(name, runs)
    if runs[0].figures[name].is_share:
        return mean_share_interval(units.numerators.tolist())
    return interval(units)


def _between_seeds(name: str, runs: Sequence[Run], base: Sequence[Run]) -> Interval | None:
    """Over the seeds that both have."""
    theirs = {run.seed: run for run in base}
    differences = [
        run.figures[name].units.value - theirs[run.seed].figures[name].units.value
        for run in runs
        if run.seed is not None and run.seed in theirs
    ]
    return over_seeds(differences) if len(differences) >= SEEDS_TO_KNOW else None


def _p_value(name: str, runs: Sequence[Run], base: Sequence[Run]) -> float:
    figures: list[Figure] = [members[0].figures[name] for members in (runs, base)]
    if len(runs) == len(base) == 1 and all(one.is_yes_or_no for one in figures):
        one, other = (figure.units.numerators > 0 for figure in figures)
        return mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))
    return wilcoxon(_mean_units(name, runs).each, _mean_units(name, base).each)


def _verdict(
    difference: Interval, between: Interval | None, p_value: float, less_is_better: bool
) -> Verdict:
    certain = difference.excludes_zero and p_value < 1 - LEVEL
    if between is not None:
        certain = certain and between.excludes_zero
        certain = certain and (between.value > 0) == (difference.value > 0)
    if not certain:
        return "not distinguishable"
    return "better" if (difference.value < 0) == less_is_better else "worse"
