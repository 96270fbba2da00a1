"""Every way to run that a recipe or config can ask for trains, saves and evaluates."""

import json
from typing import Any

import pytest

from wmtp.errors import ConfigError
from wmtp.runtime.metrics import read_metrics

from .conftest import World

VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {"devices.mixed_precision": "bf16"},
    "unpacked": {"data.train.pack_sequences": False},
    "one head": {"model.heads.horizon": 1},
    "pre_norm, untied": {"model.heads.hidden": "pre_norm", "model.tie_embeddings": False},
    "no QK-norm, GQA": {"model.qk_norm": False, "model.num_kv_heads": 1},
    "recomputed": {"train.gradient_checkpointing": True},
    "small chunks": {"loss.chunk_rows": 5},
    "wsd": {"optim.scheduler": "wsd"},
    "epochs": {"train.max_steps": None, "train.num_epochs": 0.25},
    "tensorboard": {"tensorboard.enabled": True},
    "muon": {"optim.name": "muon", "optim.lr": 0.003},
    "annealed heads": {"loss.anneal": {"to": [1.0, 0.0, 0.0]}},
    "taught by the trunk": {"loss.distill": 0.5},
    "taught by the trunk, linear": {"loss.distill": 1.0, "model.heads.kind": "linear"},
    "parallel heads": {"model.heads.kind": "parallel"},
    "linear heads": {"model.heads.kind": "linear"},
    "gpt2": {"model.kind": "hf", "model.architecture": "gpt2"},
    "gpt_neox, linear": {
        "model.kind": "hf",
        "model.architecture": "gpt_neox",
        "model.heads.kind": "linear",
    },
}


def losses(world: World, name: str) -> list[float]:
    rows = read_metrics(world.runs / name / "metrics.jsonl")
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_trains_and_evaluates(
    world: World, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [
        argument
        for key, value in VARIANTS[variant].items()
        for argument in ("--set", f"{key}={json.dumps(value)}")
    ]
    assert world.train("run", *changes) == 0
    found = losses(world, "run")
    assert found[-1] < found[0]
    capsys.readouterr()
    final = str(world.runs / "run" / "final")
    world.run("evaluate", "--model", final, "--data", str(world.folder / "held_out.txt"))
    figures = json.loads(capsys.readouterr().out)
    assert figures["perplexity"]["perplexity"] > 1
    assert figures["heads"]["ce/head_0"] > 0


@pytest.mark.parametrize("variant", ["recomputed", "small chunks"])
def test_a_variant_of_how_changes_no_loss(world: World, variant: str) -> None:
    ((key, value),) = VARIANTS[variant].items()
    world.train("plain")
    world.train("other", "--set", f"{key}={json.dumps(value)}")
    assert losses(world, "plain") == pytest.approx(losses(world, "other"), rel=1e-4)


def jsonl(world: World, rows: list[dict[str, Any]]) -> None:
    path = world.folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.recipe["data"]["train"]["sources"] = [str(path)]


def test_the_datas_own_weights_decide_what_is_learned(world: World) -> None:
    """Weight 0 on one kind of document: its targets do no gradient work and are not measured."""
    wanted = {"text": "a = 1\n" * 12, "loss_weights": 2.0}
    unwanted = {"text": "zebra " * 30, "loss_weights": 0.0}
    jsonl(world, [wanted, unwanted] * 6)
    world.recipe["weighting"] = {"algorithm": "column", "normalize": False}
    world.train("run")
    row = read_metrics(world.runs / "run" / "metrics.jsonl")[1]
    assert 0 < row["weights/kept_fraction"] < 1
    world.recipe["weighting"] = {"algorithm": "column"}
    world.train("mean-one")
    rows = read_metrics(world.runs / "mean-one" / "metrics.jsonl")
    assert all(row["weights/mean"] == pytest.approx(1) for row in rows if "loss" in row)


def test_a_users_own_weighting_trains_from_the_command_line(world: World) -> None:
    (world.folder / "surprise.py").write_text(
        "from wmtp.weighting import Weighting, mean_one\n"
        "class Surprise(Weighting):\n"
        "    scope = 'sequence'\n"
        "    cap: float = 4.0\n"
        "    def weights(self, signals):\n"
        "        return mean_one(signals.ce_BSH.clamp(max=self.cap), signals.valid_BSH)\n"
    )
    world.recipe["weighting"] = {"algorithm": "./surprise.py", "cap": 5.5}
    assert world.train("run") == 0
    row = read_metrics(world.runs / "run" / "metrics.jsonl")[1]
    assert row["weights/mean"] == pytest.approx(1)
    assert row["weights/std"] > 0


def test_masked_prompts_are_read_but_not_learned(world: World) -> None:
    jsonl(world, [{"prompt": "def f(x):\n", "completion": "    return x\n"}] * 20)
    world.recipe["train"] |= {"max_steps": 1}
    world.train("masked")
    world.train("whole", "--set", "data.train.mask_prompt=false")
    masked, whole = (
        (world.runs / name / "metrics.jsonl").read_text().splitlines()
        for name in ("masked", "whole")
    )
    assert len(masked) == len(whole)
    assert json.loads(masked[1])["loss"] != json.loads(whole[1])["loss"]


def test_a_trunk_that_mixes_documents_trains_unpacked_and_is_measured(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.recipe["model"] |= {"kind": "hf", "architecture": "bloom"}
    with pytest.raises(ConfigError, match="pack_sequences: false"):
        world.train("run")
    world.recipe["data"]["train"]["pack_sequences"] = False
    assert world.train("run") == 0
    capsys.readouterr()
    final = str(world.runs / "run" / "final")
    world.run("evaluate", "--model", final, "--data", str(world.folder / "held_out.txt"))
    assert json.loads(capsys.readouterr().out)["heads"]["ce/head_0"] > 0
