"""critic-wmtp from the command line: stage 1, then stage 2, stopped and resumed in either."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.errors import CheckpointError, ConfigError, DataError
from wmtp.model.value_head import load_value_head, read_value_head_facts
from wmtp.runtime.metrics import read_metrics

from .conftest import World
from .test_train import assert_same_run


def labelled(world: World, **changes: Any) -> None:
    """Programs of four problems; the right ones end in ``ok``, so that a value head can learn."""
    rows = []
    for problem in range(4):
        for i in range(12):
            right = i % 2 == 0
            body = f"    return a + {problem} * {i}\n" + ("# ok\n" if right else "# bad\n")
            rows.append(
                {
                    "prompt": f"def problem_{problem}(a):\n",
                    "completion": body,
                    "is_correct": right,
                    "group": f"problem {problem}",
                }
            )
    path = world.folder / "programs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.recipe["data"]["rewards"] = {"sources": [str(path)]}
    world.recipe["data"]["train"] |= {"sources": [str(path)], "mask_prompt": False}
    stage1 = {"max_steps": 6, "batch_size": 4, "max_length": 48, "eval_interval": 2}
    world.recipe["weighting"] = {"algorithm": "critic-wmtp", "stage1": stage1} | changes
    world.config["paths"]["checkpoints"]["save_interval"] = 2


LOSSES = [
    {"value_loss": "pairwise"},
    {"value_loss": "bce", "reward": "column"},
    {"value_loss": "mse", "reward": "column", "spread": "uniform"},
    {"value_loss": "mse", "auxiliary_into_trunk": True, "reward": "column"},
]


@pytest.mark.parametrize("changes", LOSSES, ids=lambda c: " ".join(map(str, c.values())))
def test_both_stages_run_from_one_recipe(world: World, changes: dict[str, Any]) -> None:
    labelled(world, **changes)
    assert world.train("run") == 0
    stage1 = read_metrics(world.runs / "run" / "stage1" / "metrics.jsonl")
    assert stage1[0]["step"] == 0
    assert all(0 <= row["value/auc"] <= 1 for row in stage1 if "value/auc" in row)
    facts = read_value_head_facts(world.runs / "run" / "stage1" / "final")
    assert facts["value_loss"] == changes["value_loss"]
    rows = [r for r in read_metrics(world.runs / "run" / "metrics.jsonl") if "loss" in r]
    assert rows[-1]["ce/head_0"] < rows[0]["ce/head_0"]
    assert all(row["weights/mean"] == pytest.approx(1, abs=1e-5) for row in rows)
    assert any(row["weights/std"] > 1e-3 for row in rows)


def value_heads(run: Path) -> list[torch.Tensor]:
    head = load_value_head(run / "stage1" / "final", 32, "linear")
    return list(head.parameters())


@pytest.mark.parametrize("step", [3, 4])
def test_stage_1_resumes_to_the_last_bit(world: World, step: int, monkeypatch: Any) -> None:
    labelled(world)
    world.train("whole")
    stop_in_stage1(world, "parts", step, monkeypatch)
    assert not (world.runs / "parts" / "stage1" / "final").exists()
    assert world.train("parts", "--resume") == 0
    for one, other in zip(
        value_heads(world.runs / "whole"), value_heads(world.runs / "parts"), strict=True
    ):
        assert torch.equal(one, other)
    assert_same_run(world.runs / "whole", world.runs / "parts")


def stop_in_stage1(world: World, name: str, step: int, monkeypatch: Any) -> None:
    from wmtp import value_training

    real = value_training.batch_loss

    def interrupted(*arguments: Any) -> Any:
        if arguments[-1] == step:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(value_training, "batch_loss", interrupted)
        assert world.train(name) == 143


@pytest.mark.parametrize("step", [1, 4, 5])
def test_stage_2_resumes_to_the_last_bit(world: World, step: int, monkeypatch: Any) -> None:
    labelled(world)
    world.train("whole")
    stop_in_stage2(world, "parts", step, monkeypatch)
    assert world.train("parts", "--resume") == 0
    assert_same_run(world.runs / "whole", world.runs / "parts")


def stop_in_stage2(world: World, name: str, step: int, monkeypatch: Any) -> None:
    from wmtp import train

    real, seen = train.learn, [0]

    def interrupted(*arguments: Any) -> Any:
        seen[0] += 1
        if seen[0] == 2 * step:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "learn", interrupted)
        assert world.train(name) == 143


def test_a_finished_value_head_serves_another_run(world: World) -> None:
    labelled(world)
    world.train("first")
    made = world.runs / "first" / "stage1" / "final"
    world.recipe["weighting"]["value_head"] = str(made)
    world.train("second")
    assert not (world.runs / "second" / "stage1").exists()
    assert_same_run(world.runs / "first", world.runs / "second")


def test_a_value_head_that_cannot_be_loaded_is_an_error(world: World) -> None:
    labelled(world, value_head=str(world.folder / "nowhere"))
    with pytest.raises(CheckpointError, match="is no value head"):
        world.train("run")
    assert not (world.runs / "run" / "metrics.jsonl").exists()


def test_the_value_heads_gradient_stays_out_of_the_trunk(world: World) -> None:
    """With weights made flat, the model learns exactly what the baseline learns."""
    labelled(world, beta=1e9)
    world.train("critic")
    world.recipe["weighting"] = {"algorithm": "baseline-mtp"}
    world.train("baseline")
    critic, baseline = (
        [r["loss"] for r in read_metrics(world.runs / name / "metrics.jsonl") if "loss" in r]
        for name in ("critic", "baseline")
    )
    assert critic == pytest.approx(baseline, rel=1e-5)


def test_let_into_the_trunk_it_changes_the_model(world: World) -> None:
    labelled(world, beta=1e9, value_loss="mse", reward="column")
    losses = []
    for name, into in (("out", False), ("in", True)):
        world.recipe["weighting"] |= {"auxiliary_into_trunk": into, "auxiliary_loss_coef": 5.0}
        world.train(name)
        rows = read_metrics(world.runs / name / "metrics.jsonl")
        losses.append([r["ce/head_0"] for r in rows if "loss" in r])
        assert all(r["value/loss"] > 0 for r in rows if "loss" in r)
    assert losses[0] != losses[1]


def test_without_rewards_stage_1_says_what_is_missing(world: World) -> None:
    labelled(world)
    world.recipe["data"]["rewards"] = {"sources": [str(world.folder / "text.txt")]}
    with pytest.raises(DataError, match="no document"):
        world.train("run")
    world.recipe["weighting"] |= {"reward": "model", "value_loss": "bce"}
    with pytest.raises(ConfigError, match=r"paths\.models\.rm"):
        world.train("run")


def test_rewards_beyond_a_probability_are_refused(world: World) -> None:
    labelled(world, value_loss="bce", reward="column")
    path = world.folder / "programs.jsonl"
    path.write_text(path.read_text().replace('"is_correct": true', '"reward": 3.0'))
    path.write_text(path.read_text().replace('"is_correct": false', '"reward": 0.0'))
    with pytest.raises(DataError, match="from 0 to 1"):
        world.train("run")


def test_dry_run_of_both_stages_keeps_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(world)
    assert world.train("run", "--dry-run") == 0
    assert "steps" in capsys.readouterr().out
    assert not (world.runs / "run").exists()
