"""critic-wmtp from the command line: stage 1, then stage 2, stopped and resumed in either."""

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.errors import CheckpointError, ConfigError, DataError, DivergedError
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
    from wmtp.stage1 import loop as value_training

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
    from wmtp import step as step_module

    real, seen = step_module.learn, [0]

    def interrupted(*arguments: Any) -> Any:
        seen[0] += 1
        if seen[0] == 2 * step:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step_module, "learn", interrupted)
        assert world.train(name) == 143


def test_a_finished_value_head_serves_another_run(world: World) -> None:
    labelled(world)
    world.train("first")
    made = world.runs / "first" / "stage1" / "final"
    world.recipe["weighting"]["value_head"] = str(made)
    world.train("second")
    assert not (world.runs / "second" / "stage1").exists()
    assert_same_run(world.runs / "first", world.runs / "second")


def test_a_value_head_of_another_trunk_is_used_with_a_warning(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(world)
    world.train("first")
    world.recipe["weighting"]["value_head"] = str(world.runs / "first" / "stage1" / "final")
    world.recipe["model"]["num_layers"] = 1
    world.train("second")
    assert "was trained on another trunk (from scratch with seed 0, " in capsys.readouterr().err


def test_a_value_head_that_cannot_be_loaded_is_an_error(world: World) -> None:
    labelled(world, value_head=str(world.folder / "nowhere"))
    with pytest.raises(ConfigError, match="is no value head"):
        world.train("run")
    assert not (world.runs / "run" / "metrics.jsonl").exists()


def test_the_value_heads_gradient_stays_out_of_the_trunk(world: World) -> None:
    """With weights made flat, the model learns exactly what the baseline learns."""
    labelled(world, beta=1e9)
    world.train("critic")
    world.recipe["weighting"] = {"algorithm": "baseline-mtp"}
    world.recipe["data"].pop("rewards", None)
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
    assert "without evaluation, saving and stage 1" in capsys.readouterr().out
    assert not (world.runs / "run").exists()


class Killed(BaseException):
    """Ends a run on the spot, as SIGKILL does: nothing is saved."""


@pytest.mark.parametrize(
    ("function", "calls"),
    [("stage1.loop.batch_loss", 2), ("step.learn", 3)],
    ids=["stage 1", "stage 2"],
)
def test_killed_before_a_first_checkpoint_it_begins_that_stage_anew(
    world: World, function: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were logged before do not stand there twice."""
    labelled(world)
    world.train("whole")
    module, name = function.rsplit(".", 1)
    place = importlib.import_module(f"wmtp.{module}")
    real, seen = getattr(place, name), [0]

    def killed(*arguments: Any) -> Any:
        seen[0] += 1
        if seen[0] == calls:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, killed)
        with pytest.raises(Killed):
            world.train("parts")
    world.train("parts", "--resume")
    assert_same_run(world.runs / "whole", world.runs / "parts")
    stages = [read_metrics(world.runs / n / "stage1" / "metrics.jsonl") for n in ("whole", "parts")]
    assert stages[0] == stages[1]


def test_a_loss_that_is_not_finite_ends_stage_1(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmtp.stage1 import loop as value_training

    labelled(world)
    real = value_training.batch_loss

    def broken(*arguments: Any) -> Any:
        total, count = real(*arguments)
        return (total * float("nan") if arguments[-1] == 2 else total), count

    monkeypatch.setattr(value_training, "batch_loss", broken)
    with pytest.raises(DivergedError, match="step 3 of stage 1"):
        world.train("run")
    assert [p.name for p in (world.runs / "run" / "stage1" / "checkpoints").iterdir()] == [
        "step-00000002"
    ]
    assert not (world.runs / "run" / "stage1" / "final").exists()


def test_hidden_states_that_are_not_finite_end_stage_1(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmtp.model.multi_token import MultiTokenModel

    labelled(world)
    real = MultiTokenModel.next_token_hidden
    monkeypatch.setattr(
        MultiTokenModel, "next_token_hidden", lambda *arguments: real(*arguments) * float("nan")
    )
    with pytest.raises(DivergedError, match="estimates of held-out documents"):
        world.train("run")


@pytest.mark.parametrize("value_loss", ["pairwise", "bce"])
def test_documents_that_are_all_cut_before_their_reward_teach_nothing(
    world: World, value_loss: str
) -> None:
    labelled(world, value_loss=value_loss)
    world.recipe["weighting"]["stage1"]["max_length"] = 4
    with pytest.raises(DataError, match=r"within 4 tokens.*stage1\.max_length"):
        world.train("run")


def test_stage_1_reads_no_more_than_the_model_can(world: World) -> None:
    labelled(world)
    world.recipe["model"]["max_seq_length"] = 32
    with pytest.raises(
        ConfigError, match=r"stage1\.max_length 48 exceeds model\.max_seq_length 32"
    ):
        world.train("run")


def test_documents_without_a_group_compete_with_none(world: World) -> None:
    """Held out: both kinds without a group, and one kind only within each group."""
    labelled(world, value_loss="bce", reward="column")
    path = world.folder / "programs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["is_correct"]:
            del row["group"]
    bare = [row | {"completion": f"{row['completion']}# none\n"} for row in rows]
    for row in bare:
        row.pop("group", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bare]))
    assert world.train("run") == 0
    figures = read_metrics(world.runs / "run" / "stage1" / "metrics.jsonl")
    assert all("value/auc" not in row for row in figures)


def test_a_dry_run_looks_for_the_value_head_too(world: World) -> None:
    labelled(world, value_head=str(world.folder / "nowhere"))
    with pytest.raises(ConfigError, match="is no value head"):
        world.train("run", "--dry-run")


def test_a_signal_in_the_last_step_of_stage_1_leaves_it_done(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(world)
    world.train("whole")
    stop_in_stage1(world, "parts", 5, monkeypatch)
    assert "stopped after stage 1, which is done" in capsys.readouterr().err
    assert (world.runs / "parts" / "stage1" / "final").is_dir()
    world.train("parts", "--resume")
    assert_same_run(world.runs / "whole", world.runs / "parts")


def test_held_out_documents_of_one_side_are_told(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(world, value_loss="bce", reward="column")
    path = world.folder / "programs.jsonl"
    path.write_text(path.read_text().replace("false", "true"))
    world.train("run")
    assert "tells right from wrong is not known" in capsys.readouterr().err


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(world: World) -> None:
    labelled(world)
    world.train("run")
    checkpoints = world.runs / "run" / "checkpoints"
    before = sorted(path.name for path in checkpoints.iterdir())
    assert before == ["step-00000006", "step-00000008"]
    world.recipe["weighting"] = {"algorithm": "baseline-mtp"}
    world.recipe["data"].pop("rewards", None)
    with pytest.raises(CheckpointError, match="another recipe"):
        world.train("run", "--resume", str(checkpoints / before[0]))
    assert sorted(path.name for path in checkpoints.iterdir()) == before


def test_documents_too_long_for_stage_1_are_told_or_refused(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(world)
    world.recipe["weighting"]["stage1"]["max_length"] = 8
    with pytest.raises(DataError, match=r"within 8 tokens.*Raise weighting\.stage1\.max_length"):
        world.train("none")
    labelled(world)
    path = world.folder / "programs.jsonl"
    long = {"text": "a + b\n" * 200, "is_correct": True, "group": "problem 0"}
    path.write_text(path.read_text() + json.dumps(long) + "\n")
    assert world.train("some") == 0
    assert "1 of 4" in capsys.readouterr().err.split("longer than 48 tokens")[0]


def test_stage_1_and_rewards_are_told_on_the_way(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(world)
    world.recipe["data"]["train"]["sources"] = [str(world.folder / "text.txt")]
    assert world.train("run") == 0
    said = capsys.readouterr().err
    assert "rewards: 0 of 1 training documents have one; the others" in said
    assert "value step 6/6  loss 0." in said
    assert said.endswith(f"the model is in {world.runs / 'run' / 'final'}\n")


@pytest.mark.parametrize(
    "changes",
    [{"value_head": "nowhere"}, {"reward": "model"}],
    ids=["value head", "reward model"],
)
def test_what_stage_1_needs_is_looked_for_before_a_run_folder_is_made(
    world: World, changes: dict[str, str]
) -> None:
    labelled(world, **changes)
    with pytest.raises((CheckpointError, ConfigError)):
        world.train("run")
    assert not world.runs.exists()


def test_pairs_are_made_of_what_the_reward_model_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that contradicts every label teaches what contradicting labels teach."""
    from wmtp.opening import rewards

    def contrary(shards: Any, *_: Any) -> Any:
        return 1 - shards.rewards

    monkeypatch.setattr(rewards, "rewards_by_model", contrary)
    (world.folder / "judge").mkdir()
    (world.folder / "judge" / "config.json").write_text("{}")
    world.config["paths"]["models"] = {"rm": str(world.folder / "judge")}
    labelled(world, reward="model")
    world.train("model")
    labelled(world, reward="column")
    path = world.folder / "programs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    flipped = (json.dumps(row | {"is_correct": not row["is_correct"]}) + "\n" for row in rows)
    path.write_text("".join(flipped))
    world.train("column")
    for one, other in zip(
        value_heads(world.runs / "model"), value_heads(world.runs / "column"), strict=True
    ):
        assert torch.equal(one, other)
