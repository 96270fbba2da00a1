"""What is known of a run: its figures on each unit of held-out data, and its curves of training."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wmtp.config_files import read_yaml_file
from wmtp.errors import DataError
from wmtp.evaluation.statistics import Units
from wmtp.runtime.metrics import read_metrics
from wmtp.untrusted import read_json

RESULT_NAME: Final = "evaluation.json"
EVALUATION_FOLDER: Final = "evaluation"


@dataclass(frozen=True)
class Figure:
    """One figure of a run, by its parts on each unit.

    Attributes:
        units: parts, in the order of the data.
        keys: names of problems; None where units are known by their order.
        less_is_better: as of a cross-entropy.
        is_share: each unit counts one and gave a number from 0 to 1.
        is_yes_or_no: each gave 0 or 1.
    """

    units: Units
    keys: tuple[str, ...] | None = None
    less_is_better: bool = True
    is_share: bool = False
    is_yes_or_no: bool = False


@dataclass(frozen=True)
class Run:
    """A run or a model that was evaluated.

    Attributes:
        name: of its folder.
        group: runs of one group differ in their seed alone.
        seed: None if it is not known.
        figures: from ``evaluation.json``, by name.
        data: what they were measured on.
        curve: from ``metrics.jsonl``.
    """

    name: str
    group: str
    seed: int | None
    figures: Mapping[str, Figure]
    data: object
    curve: "Curve | None" = None


@dataclass(frozen=True)
class Point:
    """An evaluation during training.

    Attributes:
        step: optimizer steps before it.
        tokens: read until then.
        seconds: of training until then, evaluations and saving left out.
        figures: ``eval/...``, by name.
    """

    step: int
    tokens: int
    seconds: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """Evaluations of a run in the order of its steps."""

    points: tuple[Point, ...]

    def last_until(self, *, tokens: float = math.inf, seconds: float = math.inf) -> Point | None:
        """The last evaluation within a budget; None if there is none."""
        within = [p for p in self.points if p.tokens <= tokens and p.seconds <= seconds]
        return within[-1] if within else None


def read_run(path: Path) -> Run:
    """Read a run folder, a folder that ``wmtp evaluate --out`` wrote, or its file.

    Raises:
        DataError: there is nothing to compare, or a file is not what its name says.
    """
    folder = path.parent if path.name == RESULT_NAME else path
    places = [folder / RESULT_NAME, folder / EVALUATION_FOLDER / RESULT_NAME]
    found = next((place for place in places if os.path.lexists(place)), None)
    metrics = folder / "metrics.jsonl"
    if found is None and not metrics.exists():
        raise DataError(
            f"'{path}' has neither {RESULT_NAME} nor metrics.jsonl. Give a run folder, or what "
            "'wmtp evaluate --out' wrote."
        )
    name, settings = folder.resolve().name, folder / "run.yaml"
    group, seed, figures, data = name, None, dict[str, Figure](), None
    if os.path.lexists(settings):
        with _told_with_its_file(settings):
            group, seed = _group(settings)
    if found is not None:
        with _told_with_its_file(found):
            result = read_json(found)
            figures, data = _figures(result), result.get("sources")
    return Run(name, group, seed, figures, data, _curve(metrics) if metrics.exists() else None)


@contextmanager
def _told_with_its_file(path: Path) -> Iterator[None]:
    try:
        yield
    except (ArithmeticError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no results of wmtp ({error}).") from error


def _group(path: Path) -> tuple[str, int]:
    """What a run is called together with those of other seeds, and its seed."""
    document = read_yaml_file(str(path))
    if document.errors:
        raise ValueError(document.errors[0])
    settings = document.values
    seed = settings["config"]["devices"]["seed"]
    weighting = settings["recipe"]["weighting"]
    inner = weighting.get("around")
    parts = [str(weighting["algorithm"])]
    if inner:
        parts.append(f"of {inner['algorithm']}")
    parts += [str(one["mode"]) for one in (weighting, inner or {}) if one.get("mode")]
    if settings["recipe"]["model"]["heads"]["horizon"] == 1:
        parts = ["next-token"]
    return " ".join(parts), int(seed)


def _figures(result: dict[str, Any]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    text = result.get("perplexity")
    if text is not None and text.get("each"):
        _, text_bytes, nats = zip(*text["each"], strict=True)
        bits = [one / math.log(2) for one in nats]
        figures["bits per byte"] = Figure(Units.of(bits, text_bytes))
    heads = result.get("heads")
    if heads is not None:
        for name, parts in heads.get("each", {}).items():
            figures[f"ce/{name}"] = Figure(Units.of(parts["nats"], parts["targets"]))
    for suite, found in result.items():
        if isinstance(found, dict) and isinstance(found.get("problems"), list):
            rows = found["problems"]
            shares = [row["c"] / row["n"] for row in rows]
            figures[f"{suite} pass@1"] = Figure(
                Units.of(shares),
                tuple(str(row["task_id"]) for row in rows),
                less_is_better=False,
                is_share=True,
                is_yes_or_no=all(row["n"] == 1 for row in rows),
            )
    return figures


def _curve(path: Path) -> Curve:
    points = []
    logged = tokens = 0
    seconds = 0.0
    for row in read_metrics(path):
        if "tokens_seen" in row:
            if row.get("tokens_per_second"):
                seconds += (row["tokens_seen"] - tokens) / row["tokens_per_second"]
            logged, tokens = int(row["step"]), int(row["tokens_seen"])
        held_out = {name: value for name, value in row.items() if name.startswith("eval/")}
        if held_out:
            step = int(row["step"])
            # steps since the last logged row were as large as those before it
            read = tokens * step // logged if logged else tokens
            points.append(Point(step, read, seconds, held_out))
    return Curve(tuple(points))
