"""Two real processes that share one run: the same numbers as one, sliced or copied."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.conftest import World
from tests.end_to_end.test_every_combination import labelled_rows
from tests.processes.programs import Programs
from tests.processes.ranks import fork_ranks
from wmtp.runtime.metrics import read_metrics

SLICED = ("--set", "devices.fsdp.enabled=true")
TIMES = ("tokens_per_second", "memory/peak_bytes")


def train_together(
    world: World, name: str, *more: str, stop_at: int | None = None, count: int = 2
) -> str:
    """Train the recipe as it stands, as so many processes; what they said.

    Args:
        world: holds recipe and config.
        name: of the run.
        more: arguments of ``wmtp train``.
        stop_at: the last rank finds at this look that a signal came: all must save and leave.
        count: of ranks.
    """
    config, recipe = world.write_files()
    ranks = fork_ranks(
        Programs(world.folder, name),
        "train", "--config", config, "--recipe", recipe, "--run-name", name, *more,
        count=count, spoiled={} if stop_at is None else {count - 1: {"stop_at_look": stop_at}},
    )  # fmt: skip
    assert ranks.wait() == [0 if stop_at is None else 143] * count, ranks.said
    return ranks.said


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def assert_near(one: Path, other: Path, tolerance: float) -> None:
    """Every logged figure but times, and every final parameter."""
    rows, others = read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl")
    assert len(rows) == len(others)
    for row, same in zip(rows, others, strict=True):
        assert row.keys() == same.keys()
        for name in row.keys() - set(TIMES):
            # a hit more or less where two logits are all but equal
            slack = 0.02 if name.startswith(("accuracy", "eval/accuracy")) else tolerance
            if name == "gradient_norm":  # what rounding does to parameters shows here first
                slack *= 10
            assert math.isclose(row[name], same[name], rel_tol=slack, abs_tol=slack), (name, row)
    weights = load_file(one / "final" / "model.safetensors")
    for name, tensor in load_file(other / "final" / "model.safetensors").items():
        # while its moments are young AdamW moves by the sign of a gradient, however small it is
        assert (weights[name] - tensor).abs().max() <= 10 * tolerance, name


def assert_equal(one: Path, other: Path) -> None:
    """To the last bit, and so is what the last checkpoint holds."""
    assert_near(one, other, 0.0)
    (last,) = {
        sorted(path.name for path in (run / "checkpoints").iterdir())[-1] for run in (one, other)
    }
    for path in (one / "checkpoints" / last / "training_state").glob("*.safetensors"):
        known = load_file(path)
        tensors = load_file(other / "checkpoints" / last / "training_state" / path.name)
        assert known.keys() == tensors.keys()
        assert all(torch.equal(known[name], tensors[name]) for name in known)


def test_two_ranks_train_what_one_trains(world: World) -> None:
    """Copied and sliced, stopped and resumed, from one to two and from two to one."""
    runs = world.runs
    world.recipe["model"]["dropout"] = 0.0
    world.recipe["train"]["samples"] = {"prompts": ["def f"], "interval": 3, "max_new_tokens": 9}
    world.train("one")
    world.train("one-then-two", "--set", "train.max_steps=8")
    train_together(world, "copied")
    train_together(world, "sliced", *SLICED)
    rarely = ("--set", "log_interval=3")  # sums of a row, saved before it is logged
    train_together(world, "rarely", *rarely)
    train_together(world, "rarely-stopped", *rarely, stop_at=5)
    train_together(world, "rarely-stopped", *rarely, "--resume")
    behind = ("--set", "paths.checkpoints.asynchronous=true")
    train_together(world, "stopped", *SLICED, *behind, stop_at=5)
    train_together(world, "stopped", *SLICED, *behind, "--resume")
    train_together(world, "two-then-one", *SLICED, stop_at=3)
    world.train("two-then-one", "--resume")
    train_together(
        world,
        "one-then-two",
        *SLICED,
        "--resume",
        str(runs / "one-then-two/checkpoints/step-00000004"),
    )

    for name in ("copied", "sliced", "two-then-one", "one-then-two"):
        assert_near(runs / "one", runs / name, 1e-6)
    written = (runs / "one/samples.jsonl").read_text()
    assert [json.loads(line)["step"] for line in written.splitlines()] == [3, 6, 8]
    for name in ("copied", "sliced", "two-then-one", "stopped"):
        assert (runs / name / "samples.jsonl").read_text() == written
    assert_equal(runs / "sliced", runs / "stopped")
    assert_equal(runs / "rarely", runs / "rarely-stopped")


VARIANTS: dict[str, dict[str, Any]] = {
    "parallel, untied, muon": {
        "model": {"heads": {"horizon": 3, "kind": "parallel"}, "tie_embeddings": False},
        "optim": {"name": "muon"},
    },
    "linear": {"model": {"heads": {"horizon": 3, "kind": "linear"}}},
    "frozen": {"train": {"freeze": "trunk"}},
    "taught by the trunk": {"loss": {"distill": 0.5}},
    "frozen linear": {
        "model": {"heads": {"horizon": 3, "kind": "linear"}},
        "train": {"freeze": "trunk"},
    },
    "rho1, one head": {
        "model": {"heads": {"horizon": 1}},
        "weighting": {"algorithm": "rho1-wmtp", "mode": "token_skip"},
    },
    "hf, recomputing": {
        "model": {"kind": "hf", "architecture": "gpt2"},
        "train": {"gradient_checkpointing": True},
    },
}


def test_every_kind_of_model_trains_in_slices(world: World, small_reference: Path) -> None:
    recipe = world.recipe
    world.config["paths"]["models"] = {"ref": str(small_reference)}
    recipe["train"]["max_steps"] = 3
    names = {}
    for number, (name, changes) in enumerate(VARIANTS.items()):
        changed = {key: {**recipe.get(key, {}), **value} for key, value in changes.items()}
        if "weighting" in changes:
            changed["weighting"] = changes["weighting"]
        world.recipe = {**recipe, **changed}
        names[name] = f"variant-{number}"
        world.train(f"{names[name]}-one")
        train_together(world, names[name], *SLICED)
    for name, folder in names.items():
        # Muon divides by singular values in bfloat16: where they are small, it follows rounding
        tolerance = 2e-3 if "muon" in name else 1e-5
        assert_near(world.runs / folder, world.runs / f"{folder}-one", tolerance)


def test_a_critic_goes_on_in_both_stages(world: World) -> None:
    """Bit-equal to itself when it is stopped, and near one process: moments are of all rows."""
    labelled_rows(world.folder / "rows.jsonl")
    world.recipe["data"]["train"]["sources"] = [str(world.folder / "rows.jsonl")]
    world.recipe["weighting"] = {
        "algorithm": "critic-wmtp",
        "stage1": {"max_steps": 6, "eval_interval": 3, "batch_size": 4},
    }
    train_together(world, "whole", *SLICED)
    train_together(world, "parts", *SLICED, stop_at=2)  # in stage 1
    train_together(world, "parts", *SLICED, "--resume", stop_at=9)
    train_together(world, "parts", *SLICED, "--resume")
    assert_equal(world.runs / "whole", world.runs / "parts")
    world.train("one")
    assert losses(world.runs / "whole") == pytest.approx(losses(world.runs / "one"), rel=1e-6)
    # norms of gradients near 15, of targets that a few weigh most, differ by 2e-5
    assert_near(world.runs / "one", world.runs / "whole", 1e-4)


def test_memory_that_runs_out_on_one_rank_halves_its_micro_batches(world: World) -> None:
    """The other rank waits for it, and both learn from the same rows as one process."""
    (world.folder / "greedy.py").write_text(RUNS_OUT)
    world.recipe["weighting"] = {"algorithm": str(world.folder / "greedy.py")}
    world.recipe["data"]["train"]["batch_size"] = 4
    world.train("one", "--set", "train.max_steps=4")
    said = train_together(world, "two", "--set", "train.max_steps=4")
    line = "rank 1: memory ran out: from step 2 on a micro-batch has 2 rows"
    assert said.count("memory ran out") == said.count(line) == 1
    assert losses(world.runs / "two") == pytest.approx(losses(world.runs / "one"), rel=1e-6)
    assert_near(world.runs / "one", world.runs / "two", 1e-5)


RUNS_OUT = """
import os, torch
from wmtp.weighting import Weighting

class Greedy(Weighting):
    scope = "known"

    def start_memory(self):
        return {"steps": torch.zeros(())}

    def start_sums(self):
        return {"rows": torch.zeros(())}

    def remember(self, memory, sums):
        assert sums["rows"] == 8
        memory["steps"] += 1

    def weights(self, signals):
        signals.sums["rows"] += len(signals.valid_BSH)
        too_many = len(signals.valid_BSH) > 2 and signals.memory["steps"] == 1
        if os.environ.get("RANK") == "1" and too_many:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return signals.valid_BSH.float()
"""
