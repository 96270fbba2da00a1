import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from wmtp.checkpoints.checkpoint import list_checkpoints
from wmtp.data.shards import open_shards
from wmtp.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    StorageError,
    WmtpError,
)
from wmtp.job import Job
from wmtp.runtime.metrics import read_metrics

from .conftest import World

TIMES = {"tokens_per_second", "memory/peak_bytes"}


def figures(run: Path) -> list[dict[str, Any]]:
    """Every logged value but times."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_run(one: Path, other: Path, step: int = 8) -> None:
    """Equal to the last bit: parameters, optimizer, random numbers, every logged value."""
    assert figures(one) == figures(other)
    for name in ("model.safetensors", "training_state/state.safetensors"):
        left, right = (
            load_file(run / "checkpoints" / f"step-{step:08d}" / name) for run in (one, other)
        )
        assert left.keys() == right.keys()
        assert all((left[key] == right[key]).all() for key in left), name


ALGORITHMS: dict[str, dict[str, Any]] = {
    "baseline": {"algorithm": "baseline-mtp"},
    "rho1": {"algorithm": "rho1-wmtp"},
    "rho1 heads": {"algorithm": "rho1-wmtp", "compete": "heads", "center": "none"},
    "token_skip": {"algorithm": "rho1-wmtp", "mode": "token_skip"},
}


@pytest.fixture
def reference(world: World) -> str:
    world.train("reference", "--set", "train.max_steps=20", "--set", "train.eval_interval=20")
    return str(world.runs / "reference" / "final")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resume_equals_no_stop(world: World, reference: str, algorithm: str) -> None:
    """Stopped after step 5 (no checkpoint is due), in the middle of a logged window."""
    world.recipe["weighting"] = ALGORITHMS[algorithm]
    world.recipe["model"]["dropout"] = 0.1  # draws random numbers
    world.config["paths"]["models"] = {"ref": reference}
    world.config["log_interval"] = 3
    world.train("whole")
    stopped_at(world, "parts", 5, signal.SIGINT)
    world.train("parts", "--resume")
    assert_same_run(world.runs / "whole", world.runs / "parts")


def test_muon_with_moving_head_scales_resumes_and_ends_with_a_mean(world: World) -> None:
    world.recipe["optim"] |= {"name": "muon", "lr": 3e-3}
    world.recipe["loss"] = {"anneal": {"to": [1.0, 0.0, 0.0], "end": 0.75}}
    world.recipe["train"]["average_last"] = 2
    world.train("whole")
    stopped_at(world, "parts", 5, signal.SIGTERM)
    world.train("parts", "--resume")
    assert_same_run(world.runs / "whole", world.runs / "parts")
    rows = figures(world.runs / "whole")
    assert rows[-1]["eval/ce/head_0"] < rows[0]["eval/ce/head_0"]
    assert (world.runs / "whole" / "average" / "config.json").is_file()
    with pytest.raises(CheckpointError, match="state of another recipe"):
        world.train("whole", "--resume", "--set", "optim.name=adamw", "--set", "train.max_steps=9")


def stopped_at(world: World, name: str, step: int, number: int, *more: str) -> None:
    """Train and send a real signal during that step."""
    from wmtp import train

    real = train.rate_at

    def rate_then_signal(job: Any, at: int) -> float:
        if at == step - 1:
            os.kill(os.getpid(), number)
        return real(job, at)

    train.rate_at = rate_then_signal
    try:
        assert world.train(name, *more) == 128 + number
    finally:
        train.rate_at = real
    assert (world.runs / name / "checkpoints" / f"step-{step:08d}").is_dir()


def test_five_resumes_and_workers_equal_no_stop(world: World) -> None:
    world.train("whole")
    for step in (1, 2, 4, 5, 7):
        more = ["--resume"] if step > 1 else []
        stopped_at(world, "parts", step, signal.SIGTERM, *more)
    world.train("parts", "--resume")
    assert_same_run(world.runs / "whole", world.runs / "parts")


def test_a_resumed_run_goes_on_from_the_newest_good_checkpoint(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.train("whole")
    run = world.runs / "whole"
    before = figures(run)
    damaged = run / "checkpoints" / "step-00000008" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    world.train("whole", "--resume")
    assert figures(run) == before
    assert "step-00000008 is damaged" in capfd.readouterr().err


def test_a_tiny_data_set_is_overfitted_to_near_zero(world: World) -> None:
    (world.folder / "text.txt").write_text("def add_one(x):\n    return x + 1\n")
    world.recipe["train"] = {"max_steps": 150}
    world.recipe["data"]["eval"] = {"sources": [str(world.folder / "text.txt")]}
    world.train("overfit")
    last = [row for row in figures(world.runs / "overfit") if "eval/loss" in row][-1]
    assert last["eval/loss"] < 0.02
    assert all(last[f"eval/accuracy/head_{h}"] == 1 for h in range(3))
    assert world.run("generate", "--model", str(world.runs / "overfit" / "final"),
                     "--prompt", "def add", "--max-new-tokens", "30") == 0  # fmt: skip


def test_generated_text_alone_is_on_standard_output(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    (world.folder / "text.txt").write_text("def add_one(x):\n    return x + 1\n")
    world.recipe["train"] = {"max_steps": 150}
    world.recipe["data"]["eval"] = {}
    world.train("overfit")
    capfd.readouterr()
    world.run("generate", "--model", str(world.runs / "overfit" / "final"), "--prompt", "def add")
    out, err = capfd.readouterr()
    assert out == "_one(x):\n    return x + 1\n\n"
    assert "tokens/s (end of text)" in err
    assert re.search(r"drafts: \d\.\d\d tokens a pass", err)
    world.run("generate", "--model", str(world.runs / "overfit" / "final"), "--prompt", "def add",
              "--speculative", "0")  # fmt: skip
    plain, err = capfd.readouterr()
    assert plain == out
    assert "drafts" not in err


def test_a_number_of_drafts_that_is_none_is_refused(world: World) -> None:
    with pytest.raises(
        ConfigError, match="--speculative is 'two': give a number of tokens, auto or off"
    ):
        world.run("generate", "--model", ".", "--prompt", "x", "--speculative", "two")


def test_a_logged_row_has_every_promised_key(world: World) -> None:
    world.train("run")
    (_before, row, *_) = read_metrics(world.runs / "run" / "metrics.jsonl")
    promised = {"step", "loss", "weights/mean", "weights/std", "weights/entropy",
                "weights/kept_fraction", "learning_rate", "gradient_norm", "tokens_seen",
                "tokens_per_second", "memory/peak_bytes"}  # fmt: skip
    promised |= {f"{what}/head_{h}" for what in ("ce", "accuracy", "weights") for h in range(3)}
    assert promised <= row.keys()
    assert row["weights/mean"] == pytest.approx(1)
    assert row["tokens_seen"] == 24 * 2 * 2


def test_the_logged_loss_is_the_formula_with_weights_of_one(world: World) -> None:
    """One step of everything, so that the counts are known from the row itself."""
    world.recipe["loss"] = {"head_scale": [1.0, 0.5, 0.25]}
    world.recipe["train"] = {"max_steps": 1}
    world.train("run")
    (row, *_) = figures(world.runs / "run")
    total = sum(c * row[f"ce/head_{h}"] for h, c in enumerate([1.0, 0.5, 0.25]))
    # the heads' counts differ by a few targets at document ends
    assert row["loss"] == pytest.approx(total / 1.75, rel=2e-2)


def test_the_dry_run_leaves_no_file(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in world.folder.iterdir()}
    world.train("planned", "--dry-run")
    out = capsys.readouterr().out
    for word in ("parameters", "peak memory", "step time", "disk", "time to finish"):
        assert word in out
    after = {path.name for path in world.folder.iterdir()}
    assert after - before == {"config.yaml", "recipe.yaml"}


def test_early_stopping_really_stops(world: World) -> None:
    world.recipe["optim"]["lr"] = 1e-12
    world.recipe["train"] |= {
        "max_steps": 40,
        "eval_interval": 2,
        "early_stopping": {"enabled": True, "patience": 2, "min_delta": 0.01},
    }
    assert world.train("run") == 0
    assert figures(world.runs / "run")[-1]["step"] == 4  # two evaluations after the first, at 0
    assert (world.runs / "run" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_divergence_never_reaches_the_parameters(world: World, optimizer: str) -> None:
    world.config["log_interval"] = 4
    world.recipe["optim"] |= {"lr": 10.0, "grad_clip": None, "warmup_steps": 0, "name": optimizer}
    world.recipe["optim"]["scheduler"] = "constant"
    world.recipe["train"]["max_steps"] = 4
    from wmtp import step

    real = step.learn

    def poisoned(job: Any, batch: Any, *more: Any) -> Any:
        output = real(job, batch, *more)
        job.model.trunk.layers[0].input_layernorm.weight.grad.mul_(float("nan"))
        before.append({name: p.detach().clone() for name, p in job.model.named_parameters()})
        return output

    before: list[Any] = []
    step.learn = poisoned
    try:
        with pytest.raises(DivergedError, match="gradient of step 1 was not finite"):
            world.train("run")
    finally:
        step.learn = real
    assert len(before) == 8
    for name, parameter in before[0].items():
        assert all((parameters[name] == parameter).all() for parameters in before), name


@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_frozen_trunk_stays_as_it_is_while_heads_learn(
    world: World, reference: str, distill: float
) -> None:
    start = load_file(Path(reference) / "model.safetensors")
    world.recipe["model"] = {"heads": {"horizon": 3}}
    world.config["paths"]["models"] = {"base": reference}
    world.recipe["train"]["freeze"] = "trunk"
    world.recipe["loss"] = {"distill": distill}
    world.train("heads")
    end = load_file(world.runs / "heads" / "final" / "model.safetensors")
    moved = {name for name in start if not (start[name] == end[name]).all()}
    assert moved
    assert all(name.startswith(("model.layers.2.", "model.layers.3.")) for name in moved)
    row = figures(world.runs / "heads")[1]
    of_labels = row["ce/head_0"] + 0.3 * (row["ce/head_1"] + row["ce/head_2"])
    # what is learned: the labels' cross-entropy (heads have 47, 46, 45 targets of a row of 24 or
    # so), or another number where the trunk has a share in the targets
    assert (row["loss"] == pytest.approx(of_labels / 1.6, rel=0.01)) == (distill == 0)


def test_a_start_that_cannot_be_leaves_no_run_folder(world: World) -> None:
    world.config["paths"]["models"] = {"base": str(world.folder / "gone")}
    with pytest.raises(ConfigError, match="no model directory"):
        world.train("run")
    assert not (world.runs / "run").exists()


def test_a_second_run_of_that_name_is_refused(world: World) -> None:
    world.train("run")
    with pytest.raises(ConfigError, match="already exists"):
        world.train("run")


def test_rho1_without_a_reference_says_what_to_set(world: World) -> None:
    world.recipe["weighting"] = {"algorithm": "rho1-wmtp"}
    with pytest.raises(ConfigError, match="set paths.models.ref"):
        world.train("run")


@pytest.mark.parametrize("mode", ["weighted", "token_skip"])
def test_cached_scores_train_like_computed_ones(world: World, reference: str, mode: str) -> None:
    world.recipe["weighting"] = {"algorithm": "rho1-wmtp", "mode": mode}
    world.config["paths"]["models"] = {"ref": reference}
    world.train("computed")
    files = ["--config", str(world.folder / "config.yaml"), "--recipe"]
    world.run("data", "score", *files, str(world.folder / "recipe.yaml"))
    world.train("cached")
    for one, other in zip(
        figures(world.runs / "computed"), figures(world.runs / "cached"), strict=True
    ):
        assert one["loss" if "loss" in one else "eval/loss"] == pytest.approx(
            other["loss" if "loss" in other else "eval/loss"], abs=5e-3
        )
    said = yaml.safe_load((world.runs / "cached" / "run.yaml").read_text())
    assert said["reference_scores"].startswith("cached")


def test_ctrl_c_on_the_real_program_saves_and_exits_130(world: World) -> None:
    world.recipe["train"]["max_steps"] = 100_000
    for file, values in (("config.yaml", world.config), ("recipe.yaml", world.recipe)):
        (world.folder / file).write_text(yaml.safe_dump(values))
    process = subprocess.Popen(
        [sys.executable, "-m", "wmtp", "train", "--config", "config.yaml", "--recipe",
         "recipe.yaml", "--run-name", "real", "--set", "data.train.num_workers=2"],
        cwd=world.folder, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = world.runs / "real" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "leaked" not in err
    assert "Traceback" not in err
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (world.runs / "real" / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file()


def test_a_signal_before_the_first_step_leaves_something_to_resume(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_and_be_stopped(job: Job) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("wmtp.train.evaluate_held_out", evaluate_and_be_stopped)
        assert world.train("early") == 130
    assert (world.runs / "early" / "checkpoints" / "step-00000001" / "manifest.json").is_file()
    assert world.train("early", "--resume") == 0


def test_resuming_a_finished_run_says_that_nothing_is_left(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.train("done") == 0
    capsys.readouterr()
    assert world.train("done", "--resume") == 0
    captured = capsys.readouterr()
    assert "nothing left to do: the run ended after step 8" in captured.out + captured.err


def test_resuming_with_the_trunk_no_longer_frozen_is_refused(world: World, reference: str) -> None:
    for size in ("hidden_size", "num_layers", "num_heads"):
        del world.recipe["model"][size]
    world.config["paths"]["models"] = {"base": reference}
    world.recipe["train"]["freeze"] = "trunk"
    assert world.train("heads") == 0
    world.recipe["train"]["freeze"] = "none"
    with pytest.raises(CheckpointError, match="state of another recipe"):
        world.train("heads", "--resume")


@pytest.mark.parametrize("key", ["train", "eval"])
def test_rows_longer_than_the_base_model_reads_are_refused(
    world: World, reference: str, key: str
) -> None:
    for size in ("hidden_size", "num_layers", "num_heads"):
        del world.recipe["model"][size]
    world.config["paths"]["models"] = {"base": reference}
    world.recipe["data"][key]["max_length"] = 100
    with pytest.raises(ConfigError, match="reads at most 24 tokens at once, but .* rows of 100"):
        world.train("long")


def test_rows_longer_than_the_reference_reads_are_refused(world: World, reference: str) -> None:
    world.config["paths"]["models"] = {"ref": reference}
    world.recipe["weighting"] = {"algorithm": "rho1-wmtp"}
    world.recipe["data"]["train"]["max_length"] = 100
    with pytest.raises(ConfigError, match="reads at most 24 tokens at once, but .* rows of 100"):
        world.train("long")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--model", "gone", "--prompt", "x"), "--model is 'gone'"),
        (("evaluate", "--model", "gone", "--data", "text.txt"), "--model is 'gone'"),
        (("evaluate", "--model", "gone", "--data", "text.txt", "--suite", ""), "no suite is named"),
        (("tokenizer", "train", "--source", "text.txt", "--out", "text.txt"), "could not be writ"),
    ],
)
def test_a_bad_path_on_the_command_line_is_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(world.folder)
    with pytest.raises(WmtpError, match=message):
        world.run(*arguments)


def test_results_that_cannot_be_kept_are_refused_before_anything_is_measured(
    world: World, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmtp.evaluate.load_model", lambda _: pytest.fail("too late"))
    taken = str(world.folder / "text.txt")
    with pytest.raises(StorageError, match="could not be created"):
        world.run("evaluate", "--model", reference, "--data", taken, "--out", taken)


def test_text_suite_on_shards_says_that_they_keep_no_text(world: World, reference: str) -> None:
    shards = str(world.folder / "shards")
    text, tokenizer = str(world.folder / "text.txt"), str(world.folder / "tokenizer")
    world.run("data", "prepare", "--source", text, "--tokenizer", tokenizer, "--out", shards)
    with pytest.raises(DataError, match="keeps no text"):
        world.run("evaluate", "--model", reference, "--data", shards)


def test_a_resumed_run_cannot_change_what_its_checkpoint_was_made_with(world: World) -> None:
    world.train("run", "--set", "train.max_steps=4")
    with pytest.raises(ConfigError, match=r"recipe.model.hidden_size is 64, but the run began"):
        world.train("run", "--resume", "--set", "model.hidden_size=64")


def test_a_resumed_run_says_what_else_has_changed(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.train("run", "--set", "train.max_steps=4")
    world.train("run", "--resume")
    assert "recipe.train.max_steps is now 8; the run began with 4" in capfd.readouterr().err


def test_a_shape_beside_a_pretrained_start_is_refused(world: World, reference: str) -> None:
    world.recipe["model"] = {"heads": {"horizon": 3}, "rope_theta": 500.0}
    world.config["paths"]["models"] = {"base": reference}
    with pytest.raises(ConfigError, match=r"model\.rope_theta\. Remove one"):
        world.train("run")


def test_the_dry_run_sees_cached_scores(
    world: World, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world.recipe["weighting"] = {"algorithm": "rho1-wmtp"}
    world.config["paths"]["models"] = {"ref": reference}
    world.train("planned", "--dry-run")
    assert "computed at each step" in capsys.readouterr().out
    files = ["--config", str(world.folder / "config.yaml"), "--recipe"]
    world.run("data", "score", *files, str(world.folder / "recipe.yaml"))
    world.train("planned", "--dry-run")
    assert "cached, or not needed" in capsys.readouterr().out


def test_evaluating_tells_what_was_left_out_of_the_text(
    world: World, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = world.folder / "lines.jsonl"
    lines.write_text('{"text": "def add_1(a, b): return a"}\n{\n{"text": "print(add_1(1, 2))"}\n')
    for suite in ("perplexity", "heads", "perplexity,heads"):
        capsys.readouterr()
        world.run("evaluate", "--model", reference, "--data", str(lines), "--suite", suite)
        assert capsys.readouterr().err.count("1 left out: not JSON 1") == 1


def test_programs_of_a_contest_are_trained_on_with_their_rewards(world: World) -> None:
    path = Path(__file__).parents[2] / "datasets/contest_small.jsonl"
    world.config["paths"]["datasets"] = {"contest": str(path)}
    world.recipe["data"]["train"]["sources"] = [{"path": "contest", "solutions": "all"}]
    world.train("run", "--set", "train.max_steps=1")
    rewards = [open_shards(p.parent).rewards for p in world.runs.rglob("rewards.f32")]
    assert [None if r is None else r.sum() for r in rewards] == [40]


def bloom(world: World) -> None:
    """Its positions are distances in the row, so that it cannot keep packed documents apart."""
    world.recipe["model"] |= {"kind": "hf", "architecture": "bloom"}
    world.recipe["data"]["train"]["pack_sequences"] = False


def test_a_trunk_that_cannot_pack_is_measured_document_by_document(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    bloom(world)
    world.train("run")
    capsys.readouterr()
    files = ["--model", str(world.runs / "run" / "final"), "--data", str(world.folder / "text.txt")]
    world.run("evaluate", *files, "--suite", "heads", "--max-length", "24")
    heads = json.loads(capsys.readouterr().out)["heads"]
    assert (heads["row_length"], heads["packed"]) == (24, False)


def test_a_reference_that_cannot_pack_is_refused_for_packed_rows(world: World) -> None:
    model = dict(world.recipe["model"])
    bloom(world)
    world.train("reference")
    world.recipe["model"] = model
    world.recipe["data"]["train"]["pack_sequences"] = True
    world.recipe["weighting"] = {"algorithm": "rho1-wmtp"}
    world.config["paths"]["models"] = {"ref": str(world.runs / "reference" / "final")}
    with pytest.raises(ConfigError, match=r"final' cannot keep several documents .*false\.$"):
        world.train("run")


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a job that a scheduler starts again with --resume each time."""
    from wmtp import train

    real = train.rate_at

    def killed(job: Any, at: int) -> float:
        if at == 2:
            raise RuntimeError("as if killed")
        return real(job, at)

    with monkeypatch.context() as patch:
        patch.setattr(train, "rate_at", killed)
        with pytest.raises(RuntimeError, match="as if killed"):
            world.train("run")
    with pytest.raises(ConfigError, match="already exists"):
        world.train("run")
    assert world.train("run", "--resume") == 0
    assert "no checkpoint was made yet: the run begins anew" in capsys.readouterr().err
    world.train("whole")
    assert_same_run(world.runs / "whole", world.runs / "run")

    for made in (world.runs / "run" / "final", *list_checkpoints(world.runs / "run/checkpoints")):
        shutil.rmtree(made)
    saving_often = ("--set", "paths.checkpoints.save_interval=3")  # there must have been some
    with pytest.raises(CheckpointError, match="Start anew with another --run-name"):
        world.train("run", "--resume", *saving_often)
