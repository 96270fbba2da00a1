"""Gradients that are no numbers, and memory that runs out, in real runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wmtp import step as step_module
from wmtp import train as train_module
from wmtp.checkpoints.checkpoint import list_checkpoints
from wmtp.errors import DeviceError, DivergedError
from wmtp.runtime.device import Device

from .conftest import World
from .test_train import figures

OUT_OF_MEMORY = """
import torch
from wmtp.weighting import Weighting

class Greedy(Weighting):
    scope = "known"
    most_rows: int

    def start_memory(self):
        return {"seen": torch.zeros(())}

    def start_sums(self):
        return {"seen": torch.zeros(())}

    def remember(self, memory, sums):
        memory["seen"] += sums["seen"]

    def weights(self, signals):
        signals.sums["seen"] += len(signals.valid_BSH)
        first = signals.sums["seen"] + signals.memory["seen"] == len(signals.valid_BSH)
        if len(signals.valid_BSH) > self.most_rows and (not first or self.most_rows < 2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.ones_like(signals.valid_BSH, dtype=torch.float32)
"""


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the gradient of these steps (the first is 1) not a number."""
    real = step_module.learn

    def learn(job: Any, moving: Any, *more: Any) -> Any:
        output = real(job, moving, *more)
        if moving.progress.step + 1 in steps:
            job.model.trunk.layers[0].input_layernorm.weight.grad.mul_(float("nan"))
        return output

    monkeypatch.setattr(step_module, "learn", learn)


def lines_of_code(path: Path) -> None:
    rows = [{"text": f"def f_{i}(x):\n    return x + {i}\n"} for i in range(90)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_bad_step_is_named_with_its_lines_and_the_last_good_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world.folder / "code.jsonl"
    lines_of_code(source)
    world.recipe["data"]["train"]["sources"] = [str(source)]
    world.config["log_interval"] = 3
    poison(monkeypatch, 5)
    with pytest.raises(DivergedError) as raised:
        world.train("run")
    message = str(raised.value)
    assert "gradient of step 5 was not finite; no parameter took it" in message
    assert f"{source}:" in message
    assert "; and 1 more rows" in message  # 2 micro-batches of 2 rows
    told = json.loads((world.runs / "run" / "bad_step.json").read_text())
    assert told["step"] == 5
    assert len(told["rows"]) == 4
    assert all(str(source) in place for place in told["rows"])
    (kept,) = list_checkpoints(world.runs / "run" / "checkpoints")
    assert kept.name == "step-00000004"


def test_skipped_steps_leave_no_trace_and_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.recipe["train"] |= {"on_nonfinite": "skip", "skip_limit": 2}
    poison(monkeypatch, 2, 5)
    assert world.train("run") == 0
    told = capsys.readouterr().err
    assert "1 steps up to step 2 were skipped: their gradients were not finite; 1 of" in told
    assert "1 steps up to step 5 were skipped: their gradients were not finite; 2 of" in told
    rows = {row["step"]: row for row in figures(world.runs / "run") if "learning_rate" in row}
    assert sorted(rows) == list(range(1, 9))
    assert "loss" not in rows[2]
    assert rows[8]["loss"] < rows[1]["loss"]

    # stopped and resumed between the two, it counts on
    world.config["log_interval"] = 1
    assert_same_after_a_stop(world)


def assert_same_after_a_stop(world: World) -> None:
    checkpoint = world.runs / "run" / "checkpoints" / "step-00000004"
    before = {path.name: path.read_bytes() for path in (world.runs / "run" / "final").iterdir()}
    assert world.train("run", "--resume", str(checkpoint)) == 0
    after = {path.name: path.read_bytes() for path in (world.runs / "run" / "final").iterdir()}
    assert before == after


def test_more_skipped_steps_than_allowed_end_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.recipe["train"] |= {"on_nonfinite": "skip", "skip_limit": 2}
    poison(monkeypatch, 2, 3, 6)
    with pytest.raises(DivergedError, match="step 2 was not finite"):
        world.train("run")
    assert max(row["step"] for row in figures(world.runs / "run")) == 5


def test_a_loss_that_is_no_number_holds_the_update_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient may be finite: nothing else would tell."""
    real = step_module.fused_mtp_loss

    def infinite(*arguments: Any, **more: Any) -> Any:
        output = real(*arguments, **more)
        output.loss.data.fill_(torch.inf)
        return output

    monkeypatch.setattr(step_module, "fused_mtp_loss", infinite)
    with pytest.raises(DivergedError, match="the loss or gradient of step 1 was not finite"):
        world.train("run")


def greedy(world: World, most_rows: int) -> None:
    (world.folder / "greedy.py").write_text(OUT_OF_MEMORY)
    world.recipe["weighting"] = {
        "algorithm": str(world.folder / "greedy.py"), "most_rows": most_rows
    }  # fmt: skip
    world.recipe["data"]["train"]["batch_size"] = 6
    world.recipe["train"]["gradient_accumulation"] = 1


def losses(world: World, name: str) -> list[float]:
    return [row["loss"] for row in figures(world.runs / name) if "loss" in row]


def test_memory_that_runs_out_makes_smaller_micro_batches_of_the_same_rows(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy(world, 6)
    world.train("roomy")
    capsys.readouterr()
    greedy(world, 1)
    assert world.train("narrow") == 0
    told = capsys.readouterr().err
    assert told.count("memory ran out") == 1
    assert "from step 1 on a micro-batch has 1 rows; steps learn from the same rows" in told
    # the same sums in another order
    assert losses(world, "narrow") == pytest.approx(losses(world, "roomy"), abs=1e-5)

    # a resumed run does not run out again
    checkpoint = world.runs / "narrow" / "checkpoints" / "step-00000004"
    whole = (world.runs / "narrow" / "final" / "model.safetensors").read_bytes()
    assert world.train("narrow", "--resume", str(checkpoint)) == 0
    assert "memory ran out" not in capsys.readouterr().err
    assert (world.runs / "narrow" / "final" / "model.safetensors").read_bytes() == whole


def test_a_row_that_does_not_fit_ends_the_run_with_what_to_do(world: World) -> None:
    greedy(world, 0)
    with pytest.raises(DeviceError, match="a single row .* train.gradient_checkpointing: true"):
        world.train("run")


def test_what_a_weighting_counts_is_forgotten_before_a_step_is_tried_again(world: World) -> None:
    """Else the micro-batches that did fit would count twice."""
    greedy(world, 3)
    world.recipe["train"] |= {"gradient_accumulation": 2, "max_steps": 4}
    world.train("run")
    (checkpoint,) = list_checkpoints(world.runs / "run" / "checkpoints")
    seen = load_file(checkpoint / "training_state" / "state.safetensors")["memory.seen"]
    assert seen.item() == 4 * 2 * 6


def under_pressure(monkeypatch: pytest.MonkeyPatch, *readings: float) -> list[str]:
    """Let the device tell these readings, and no pressure after them; what it was asked to do."""
    left, asked = list(readings), []

    def memory_pressure(_: Device) -> float:
        asked.append("read")
        return left.pop(0) if left else 0.5

    monkeypatch.setattr(Device, "memory_pressure", memory_pressure)
    monkeypatch.setattr(Device, "empty_cache", lambda _: asked.append("empty"))
    return asked


def one_micro_batch_of_six_rows(world: World) -> None:
    world.recipe["data"]["train"]["batch_size"] = 6
    world.recipe["train"]["gradient_accumulation"] = 1


def sizes_of_micro_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Step and rows of every micro-batch that is learned."""
    real, seen = step_module.learn, list[tuple[int, int]]()

    def learn(job: Any, moving: Any, batch: Any, *more: Any) -> Any:
        seen.append((moving.progress.step + 1, len(batch.rows)))
        return real(job, moving, batch, *more)

    monkeypatch.setattr(step_module, "learn", learn)
    return seen


def test_req7_pressure_above_095_halves_the_micro_batch_and_keeps_the_step(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_micro_batch_of_six_rows(world)
    world.train("roomy")
    assert "of the memory that is recommended" not in capsys.readouterr().err
    asked = under_pressure(monkeypatch, 0.5, 0.96)
    seen = sizes_of_micro_batches(monkeypatch)
    world.train("pressed")
    assert seen == [(1, 6), (2, 6), *((step, 3) for step in range(3, 9) for _ in range(2))]
    assert asked == ["read", "read", "empty", *["read"] * 6]
    told = capsys.readouterr().err
    assert (
        "step 2: the driver holds 96% of the memory that is recommended: a micro-batch has 3 rows "
        "from now on, and a step 2 of them; steps learn from the same rows as before"
    ) in " ".join(told.split())
    # the same sums in another order
    assert losses(world, "pressed") == pytest.approx(losses(world, "roomy"), abs=1e-5)
    rows = figures(world.runs / "pressed")
    assert [row["tokens_seen"] for row in rows if "loss" in row] == [
        step * 6 * 24 for step in range(1, 9)
    ]

    # a resumed run keeps it
    checkpoint = world.runs / "pressed" / "checkpoints" / "step-00000004"
    whole = (world.runs / "pressed" / "final" / "model.safetensors").read_bytes()
    seen.clear()
    world.train("pressed", "--resume", str(checkpoint))
    assert set(seen) == {(step, 3) for step in range(5, 9)}
    assert (world.runs / "pressed" / "final" / "model.safetensors").read_bytes() == whole


def test_req7_pressure_above_085_empties_the_cache_and_changes_no_batch(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_micro_batch_of_six_rows(world)
    asked = under_pressure(monkeypatch, 0.85, 0.86, 0.95)
    seen = sizes_of_micro_batches(monkeypatch)
    world.train("run")
    assert {rows for _, rows in seen} == {6}
    assert asked == ["read", "read", "empty", "read", "empty", *["read"] * 5]
    assert capsys.readouterr().err.count("what it does not use was given back") == 2


def test_req7_a_single_row_under_pressure_is_told_what_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.recipe["data"]["train"]["batch_size"] = 1
    under_pressure(monkeypatch, 0.99)
    assert world.train("run") == 0
    assert "train.gradient_checkpointing: true" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("log_interval", "waited"), [(100, [3, 6]), (3, [])])
def test_req3_scratch_memory_is_waited_for_where_no_row_is_logged(
    world: World, monkeypatch: pytest.MonkeyPatch, log_interval: int, waited: list[int]
) -> None:
    """At least every 50 steps, here every 3; a logged row waits by itself."""
    assert step_module.STEPS_BETWEEN_WAITS <= 50
    monkeypatch.setattr(train_module, "STEPS_BETWEEN_WAITS", 3)
    steps, found = [], []
    real = train_module.take_step
    monkeypatch.setattr(train_module, "take_step", lambda *args: (steps.append(1), real(*args))[1])
    monkeypatch.setattr(Device, "free_scratch", lambda _: found.append(len(steps)))
    world.config["log_interval"] = log_interval
    world.train("run")
    assert found == waited


def test_a_run_that_is_short_of_memory_says_so_and_learns_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.train("roomy")
    assert "memory is short" not in capsys.readouterr().err
    monkeypatch.setattr(Device, "save_memory_if_short_for", lambda *_: True)
    world.train("short")
    assert "memory is short for this model" in capsys.readouterr().err
    assert losses(world, "short") == losses(world, "roomy")
