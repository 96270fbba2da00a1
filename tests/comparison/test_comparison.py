"""Runs side by side: who is better, and who cannot be told apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from wmtp.cli import app
from wmtp.comparison.grid import cells
from wmtp.comparison.page import as_page, as_text, tables
from wmtp.comparison.pairs import Line, compare
from wmtp.comparison.results import read_run
from wmtp.errors import ConfigError, DataError

TARGETS = [100 + 7 * (i % 13) for i in range(80)]


def write_run(
    folder: Path,
    shift: float,
    *,
    seed: int = 0,
    algorithm: str = "baseline-mtp",
    noise: int = 0,
    passed: list[int] | None = None,
) -> Path:
    """A run whose cross-entropy is that of the others plus a shift, in every row a little else."""
    draws = np.random.default_rng(1)
    ce = draws.normal(3.0, 0.6, 80) + shift + np.random.default_rng(noise).normal(0, 0.02, 80)
    result: dict[str, Any] = {
        "sources": ["held-out"],
        "heads": {
            "each": {"head_0": {"nats": (ce * TARGETS).tolist(), "targets": TARGETS}},
        },
    }
    if passed is not None:
        result["mbpp"] = {
            "problems": [{"task_id": i, "n": 1, "c": c} for i, c in enumerate(passed)]
        }
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(result))
    settings = {
        "config": {"devices": {"seed": seed}},
        "recipe": {
            "weighting": {"algorithm": algorithm},
            "model": {"heads": {"horizon": 4}},
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    rows = []
    for step in (10, 20, 30):
        speed = 100.0 if algorithm == "baseline-mtp" else 50.0
        rows += [
            {"step": step, "tokens_seen": 1000 * step, "tokens_per_second": speed},
            {"step": step, "eval/ce/head_0": 4.0 - step / 100 + shift},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def lines(*folders: Path) -> list[Line]:
    return compare([read_run(folder) for folder in folders])


def test_a_small_difference_on_the_same_units_is_found(tmp_path: Path) -> None:
    """0.05 nats, where rows differ by 0.6."""
    base = write_run(tmp_path / "base", 0.0)
    other = write_run(tmp_path / "other", -0.05, algorithm="rho1-wmtp", noise=1)
    first, second = lines(base, other)
    assert (first.verdict, second.verdict) == ("baseline", "better")
    assert second.difference is not None
    assert second.difference.high < 0
    assert second.p_value is not None
    assert second.p_value < 1e-6
    assert lines(other, base)[1].verdict == "worse"


def test_no_winner_is_named_where_there_is_none(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", 0.0)
    other = write_run(tmp_path / "other", 0.0, algorithm="rho1-wmtp", noise=1)
    assert lines(base, other)[1].verdict == "not distinguishable"
    text = as_text(tables([read_run(base), read_run(other)], lines(base, other)))
    assert "not distinguishable" in text
    assert "With one seed nothing is known of what another seed would give." in text


def test_seeds_that_disagree_make_no_winner(tmp_path: Path) -> None:
    """Each seed's rows are certain, but one seed says better and two say worse."""
    base = [write_run(tmp_path / f"b{s}", 0.0, seed=s, noise=s) for s in range(3)]
    other = [
        write_run(tmp_path / f"o{s}", shift, seed=s, algorithm="rho1-wmtp", noise=10 + s)
        for s, shift in enumerate((-0.3, 0.05, 0.05))
    ]
    assert lines(base[0], other[0])[1].verdict == "better"
    assert lines(*base, *other)[1].verdict == "not distinguishable"
    same = [
        write_run(
            tmp_path / f"s{s}", -0.1 - s / 1000, seed=s, algorithm="critic-wmtp", noise=20 + s
        )
        for s in range(3)
    ]
    found = lines(*base, *same)[1]
    assert (found.verdict, found.seeds) == ("better", 3)
    assert found.between_seeds is not None
    assert found.between_seeds.high < 0


def test_problems_are_compared_by_mcnemar(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", 0.0, passed=[0] * 40 + [1] * 60)
    other = write_run(
        tmp_path / "other", 0.0, algorithm="rho1-wmtp", passed=[1] * 12 + [0] * 30 + [1] * 58
    )
    found = {line.group: line for line in lines(base, other) if line.figure == "mbpp pass@1"}
    assert found["rho1-wmtp"].p_value == pytest.approx(0.0129, abs=1e-4)  # 12 against 2
    assert found["rho1-wmtp"].verdict == "better"
    assert round(found["baseline-mtp"].value.low, 3) == 0.502  # Wilson


def test_other_data_is_not_compared(tmp_path: Path) -> None:
    base, other = (write_run(tmp_path / name, 0.0) for name in ("base", "other"))
    path = other / "evaluation" / "evaluation.json"
    path.write_text(path.read_text().replace("[100, 107", "[101, 107"))
    with pytest.raises(DataError, match=r"'other' was not measured on the data of 'base'\. Eval"):
        lines(base, other)


def test_training_is_shown_at_equal_tokens_and_at_equal_time(tmp_path: Path) -> None:
    """The second run is half as fast: within 300 seconds it comes to step 10."""
    base = write_run(tmp_path / "base", 0.0)
    other = write_run(tmp_path / "other", -0.1, algorithm="rho1-wmtp")
    runs = [read_run(base), read_run(other)]
    tokens, clock = tables(runs, compare(runs))[-2:]
    assert [row[2] for row in tokens.rows] == ["30", "30"]
    assert clock.heading == "training, within 300 seconds of steps"
    assert [row[2] for row in clock.rows] == ["30", "10"]


def test_an_evaluation_between_logged_rows_has_read_its_own_tokens(tmp_path: Path) -> None:
    """Logged at step 10, evaluated at step 15."""
    run = write_run(tmp_path / "run", 0.0)
    rows = [
        {"step": 10, "tokens_seen": 10_000, "tokens_per_second": 100.0},
        {"step": 15, "eval/ce/head_0": 3.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read_run(run).curve
    assert curve is not None
    assert (curve.points[0].tokens, curve.points[0].seconds) == (15_000, 100.0)


def test_the_page_stands_alone_and_shows_names_as_text(tmp_path: Path) -> None:
    base = write_run(tmp_path / "<b>", 0.0)
    other = write_run(tmp_path / "other", 0.0, algorithm="<script>alert(1)</script>")
    runs = [read_run(base), read_run(other)]
    page = as_page(tables(runs, compare(runs)))
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has neither evaluation.json nor metrics.jsonl"):
        read_run(tmp_path / "empty")
    bad = write_run(tmp_path / "bad", 0.0)
    (bad / "evaluation" / "evaluation.json").write_text('{"heads": {"each": 3}}')
    with pytest.raises(DataError, match="holds no results of wmtp"):
        read_run(bad)
    with pytest.raises(ConfigError, match="one run is nothing to compare"):
        app(["compare", str(bad)], standalone_mode=False)


# the grid -----------------------------------------------------------------------------------------


def test_a_grid_has_every_recipe_its_controls_and_its_seeds(tmp_path: Path) -> None:
    uniform, weighted = tmp_path / "uniform.yaml", tmp_path / "rho1.yaml"
    uniform.write_text("weighting: {algorithm: baseline-mtp}\n")
    weighted.write_text("weighting: {algorithm: rho1-wmtp, mode: token_skip}\n")
    found = cells([uniform, weighted], ["shuffled", "next-token"], 2)
    assert [cell.name for cell in found] == [
        f"{name}-seed{seed}" for seed in (0, 1)
        for name in ("uniform", "rho1", "rho1-shuffled", "next-token")
    ]  # fmt: skip
    assert found[2].overrides == (
        'recipe.weighting={"algorithm": "shuffled", "around": {"algorithm": "rho1-wmtp", '
        '"mode": "token_skip"}}',
        "config.devices.seed=0",
    )
    with pytest.raises(ConfigError, match="control is 'x': use next-token, shuffled"):
        cells([uniform], ["x"], 1)
