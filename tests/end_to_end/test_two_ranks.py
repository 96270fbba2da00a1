"""Two real processes that share one run: the same numbers as one, sliced or copied."""

import json
import math
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.end_to_end.conftest import World
from tests.end_to_end.test_every_combination import labelled_rows
from wmtp.runtime.metrics import read_metrics

SLICED = ("--set", "devices.fsdp.enabled=true")
TIMES = ("tokens_per_second", "memory/peak_bytes")


class Ranks:
    """Commands for two processes, or more, run when ``finish`` is called."""

    def __init__(self, world: World, count: int = 2) -> None:
        self.world = world
        self.count = count
        self.commands: list[dict[str, Any]] = []

    def train(
        self, name: str, *more: str, stop_after: int | None = None, per_machine: int = 2
    ) -> None:
        config, recipe = self.world.write_files(f"-{len(self.commands)}")
        arguments = ["train", "--config", config, "--recipe", recipe, "--run-name", name, *more]
        self.commands.append(
            {"arguments": arguments, "stop_after": stop_after, "per_machine": per_machine}
        )

    def finish(self) -> list[int]:
        """The exit code of each command, which must be the same on all ranks."""
        path = self.world.folder / f"commands-{uuid.uuid4()}.json"
        path.write_text(json.dumps(self.commands))
        self.commands = []
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.end_to_end.as_rank", str(rank), str(self.count),
                 str(path)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                cwd=Path(__file__).parents[2],
            )
            for rank in range(self.count)
        ]  # fmt: skip
        told = [rank.communicate(timeout=300) for rank in ranks]
        assert all(rank.returncode == 0 for rank in ranks), "\n".join(err for _, err in told)
        first, *others = (json.loads(out.splitlines()[-1]) for out, _ in told)
        assert all(other == first for other in others)
        return [int(code) for code in first]


def assert_near(one: Path, other: Path, tolerance: float) -> None:
    """Every logged figure but times, and every final parameter."""
    rows, others = read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl")
    assert len(rows) == len(others)
    for row, same in zip(rows, others, strict=True):
        assert row.keys() == same.keys()
        for name in row.keys() - set(TIMES):
            # a hit more or less where two logits are all but equal
            slack = 0.01 if name.startswith(("accuracy", "eval/accuracy")) else tolerance
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
    runs, ranks = world.runs, Ranks(world)
    world.recipe["model"]["dropout"] = 0.0
    world.train("one")
    world.train("one-then-two", "--set", "train.max_steps=8")
    ranks.train("copied")
    ranks.train("sliced", *SLICED)
    rarely = ("--set", "log_interval=3")  # sums of a row, saved before it is logged
    ranks.train("rarely", *rarely)
    ranks.train("rarely-stopped", *rarely, stop_after=5)
    ranks.train("rarely-stopped", *rarely, "--resume")
    ranks.train("behind", *SLICED, "--set", "paths.checkpoints.asynchronous=true")
    ranks.train("stopped", *SLICED, stop_after=5)
    ranks.train("stopped", *SLICED, "--resume")
    ranks.train("two-then-one", *SLICED, stop_after=3)
    ranks.train(
        "one-then-two", *SLICED, "--resume", str(runs / "one-then-two/checkpoints/step-00000004")
    )
    assert ranks.finish() == [0, 0, 0, 143, 0, 0, 143, 0, 143, 0]
    assert world.train("two-then-one", "--resume") == 0

    for name in ("copied", "sliced", "two-then-one", "one-then-two"):
        assert_near(runs / "one", runs / name, 1e-6)
    assert_equal(runs / "sliced", runs / "behind")
    assert_equal(runs / "sliced", runs / "stopped")
    assert_equal(runs / "rarely", runs / "rarely-stopped")


VARIANTS: dict[str, dict[str, Any]] = {
    "one head": {"model": {"heads": {"horizon": 1}}},
    "parallel, untied, muon": {
        "model": {"heads": {"horizon": 3, "kind": "parallel"}, "tie_embeddings": False},
        "optim": {"name": "muon"},
    },
    "linear": {"model": {"heads": {"horizon": 3, "kind": "linear"}}},
    "frozen": {"train": {"freeze": "trunk"}},
    "frozen linear": {
        "model": {"heads": {"horizon": 3, "kind": "linear"}},
        "train": {"freeze": "trunk"},
    },
    "rho1": {"weighting": {"algorithm": "rho1-wmtp", "mode": "token_skip"}},
    "hf, recomputing": {
        "model": {"kind": "hf", "architecture": "gpt2"},
        "train": {"gradient_checkpointing": True},
    },
}


def test_every_kind_of_model_trains_in_slices(world: World, small_reference: Path) -> None:
    ranks, recipe = Ranks(world), world.recipe
    world.config["paths"]["models"] = {"ref": str(small_reference)}
    recipe["train"]["max_steps"] = 4
    names = {}
    for number, (name, changes) in enumerate(VARIANTS.items()):
        changed = {key: {**recipe[key], **value} for key, value in changes.items()}
        if "weighting" in changes:
            changed["weighting"] = changes["weighting"]
        world.recipe = {**recipe, **changed}
        names[name] = f"variant-{number}"
        world.train(f"{names[name]}-one")
        ranks.train(names[name], *SLICED)
    assert ranks.finish() == [0] * len(VARIANTS)
    for name, folder in names.items():
        # Muon divides by singular values in bfloat16: where they are small, it follows rounding
        tolerance = 2e-3 if "muon" in name else 1e-5
        assert_near(world.runs / folder, world.runs / f"{folder}-one", tolerance)


def test_a_critic_goes_on_in_both_stages(world: World) -> None:
    """Each rank keeps running means of its own rows: bit-equal to itself, and near one process."""
    labelled_rows(world.folder / "rows.jsonl")
    world.recipe["data"]["train"]["sources"] = [str(world.folder / "rows.jsonl")]
    world.recipe["weighting"] = {
        "algorithm": "critic-wmtp",
        "stage1": {"max_steps": 6, "eval_interval": 3, "batch_size": 4},
    }
    ranks = Ranks(world)
    ranks.train("whole", *SLICED)
    ranks.train("parts", *SLICED, stop_after=2)  # in stage 1
    ranks.train("parts", *SLICED, "--resume", stop_after=9)
    ranks.train("parts", *SLICED, "--resume")
    assert ranks.finish() == [0, 143, 143, 0]
    assert_equal(world.runs / "whole", world.runs / "parts")
