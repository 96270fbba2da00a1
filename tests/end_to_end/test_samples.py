"""Texts that are written during training, and steps that are given in tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from wmtp.config_check import load_settings
from wmtp.errors import ConfigError

from .conftest import World
from .test_train import assert_same_run, figures


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def ask_for_samples(world: World) -> None:
    world.recipe["model"]["dropout"] = 0.1  # which is off while a sample is written
    world.recipe["train"]["samples"] = {
        "prompts": ["def add_3", "한"], "interval": 3, "max_new_tokens": 5,
    }  # fmt: skip


def test_samples_change_nothing_and_a_resumed_run_repeats_none(world: World) -> None:
    ask_for_samples(world)
    world.train("whole")
    rows = samples(world.runs / "whole")
    assert [row["step"] for row in rows] == [3, 3, 6, 6, 8, 8]
    assert [row["prompt"] for row in rows[:2]] == ["def add_3", "한"]
    assert all(isinstance(row["text"], str) and row["ended"] in (True, False) for row in rows)

    world.train("halves")
    (world.runs / "halves/checkpoints/step-00000008/manifest.json").unlink()
    with (world.runs / "halves/samples.jsonl").open("a") as file:
        file.write('{"step": 8, "torn')
    world.train("halves", "--resume")
    assert samples(world.runs / "halves") == rows
    assert_same_run(world.runs / "whole", world.runs / "halves")

    del world.recipe["train"]["samples"]
    world.train("without")
    assert not (world.runs / "without/samples.jsonl").exists()
    assert figures(world.runs / "without") == figures(world.runs / "whole")


def test_a_step_in_tokens_is_the_step_of_as_many_rows(world: World) -> None:
    """96 tokens are four rows of 24: two micro-batches of two, or of three and one."""
    del world.recipe["data"]["eval"]
    world.recipe["train"] = {"max_steps": 3, "gradient_accumulation": 2}
    world.train("rows")
    world.recipe["train"] = {"max_steps": 3, "tokens_per_step": 96}
    world.train("tokens")
    assert figures(world.runs / "tokens") == figures(world.runs / "rows")
    world.recipe["data"]["train"]["batch_size"] = 3
    world.train("others")
    last, others = (figures(world.runs / name)[-1] for name in ("rows", "others"))
    assert others["tokens_seen"] == last["tokens_seen"] == 3 * 96
    assert others["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens_per_step": 100}, "tokens_per_step 100 is no multiple of .* 24: use 96"),
        ({"tokens_per_step": 96, "gradient_accumulation": 2}, "both say how large a step is"),
        ({"samples": {"prompts": [""]}}, "a prompt is empty"),
    ],
)
def test_what_does_not_go_together_is_refused(
    world: World, changes: dict[str, Any], said: str
) -> None:
    world.recipe["train"] = {"max_steps": 3, **changes}
    with pytest.raises(ConfigError, match=said):
        load_settings(*world.write_files())


def test_z_loss_is_in_the_loss_and_not_in_the_cross_entropy(world: World) -> None:
    """The first step has the same model: only what is minimized differs."""
    del world.recipe["data"]["eval"]
    world.recipe["train"] = {"max_steps": 2, "gradient_accumulation": 2}
    world.train("plain")
    world.recipe["loss"] = {"z_loss": 0.01}
    world.train("priced")
    plain, priced = (figures(world.runs / name) for name in ("plain", "priced"))
    assert priced[0]["ce/head_0"] == plain[0]["ce/head_0"]
    # from scratch z is nearly log 300 = 5.7
    assert priced[0]["loss"] - plain[0]["loss"] == pytest.approx(0.01 * 5.7**2, rel=0.05)
    assert priced[1]["ce/head_0"] != plain[1]["ce/head_0"]


def test_marks_are_printed_beside_what_was_reached(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.recipe["evaluation"] = {"marks": {"bits_per_byte": 9.0, "tokens_per_second": 1e9}}
    world.recipe["train"] = {"max_steps": 1}
    world.train("run")
    capsys.readouterr()
    model, text = str(world.runs / "run/final"), str(world.folder / "held_out.txt")
    world.run("evaluate", "--model", model, "--data", text, "--suite", "perplexity")
    out, err = capsys.readouterr()
    bits = json.loads(out)["perplexity"]["bits_per_byte"]
    assert json.loads(out)["marks"]["bits_per_byte"] == {"mark": 9.0, "reached": bits, "met": True}
    assert f"bits_per_byte {bits:.4g}, to be below 9: met by" in err
    assert "tokens_per_second not measured, to be above 1e+09" in err
    world.run("evaluate", "--model", model, "--data", text, "--suite", "speed")
    out, err = capsys.readouterr()
    assert json.loads(out)["marks"]["tokens_per_second"]["met"] is False
    assert "missed by" in err
    assert "bits_per_byte not measured" in err
