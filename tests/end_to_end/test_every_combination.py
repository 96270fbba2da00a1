"""All trunks x heads x weightings x precisions: train, save, load, resume to the last bit."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.model.hf_layout import load_model
from wmtp.weighting import ALGORITHMS

from .conftest import World
from .test_train import assert_same_run

TRUNKS: dict[str, dict[str, Any]] = {
    "llama": {"kind": "llama"},
    "gpt2": {"kind": "hf", "architecture": "gpt2"},
}
HEADS = ("sequential", "parallel", "linear")
SKIP = {"algorithm": "rho1-wmtp", "mode": "token_skip"}
WEIGHTINGS: dict[str, dict[str, Any]] = {
    "baseline-mtp": {"algorithm": "baseline-mtp"},
    "column": {"algorithm": "column"},
    "rho1-wmtp weighted": {"algorithm": "rho1-wmtp"},
    "rho1-wmtp token_skip": SKIP,
    "critic-wmtp": {
        "algorithm": "critic-wmtp",
        "stage1": {"max_steps": 2, "batch_size": 2, "eval_interval": 1},
    },
    "shuffled": {"algorithm": "shuffled", "around": SKIP},
    "random_matched": {"algorithm": "random_matched", "around": {"algorithm": "rho1-wmtp"}},
}
PRECISIONS = ("fp32", "bf16")
TABLE = list(product(TRUNKS, HEADS, WEIGHTINGS, PRECISIONS))


def test_the_table_has_every_shipped_algorithm() -> None:
    assert {str(keys["algorithm"]) for keys in WEIGHTINGS.values()} == set(ALGORITHMS)


def labelled_rows(path: Path) -> None:
    """Rows that serve every algorithm: prompts, weights, rewards, groups."""
    rows = [
        {
            "prompt": f"def f_{i % 3}(a):\n",
            "completion": f"    return a + {i}\n",
            "loss_weights": 0.5 + i % 4,
            "is_correct": i % 2 == 0,
            "group": f"problem {i % 3}",
        }
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("trunk", "heads", "weighting", "precision"), TABLE)
def test_trains_saves_loads_and_resumes_to_the_last_bit(
    world: World, small_reference: Path, trunk: str, heads: str, weighting: str, precision: str
) -> None:
    rows = world.folder / "rows.jsonl"
    labelled_rows(rows)
    world.config["devices"]["mixed_precision"] = precision
    world.config["paths"] |= {"models": {"ref": str(small_reference)}}
    world.config["paths"]["checkpoints"]["save_interval"] = 2
    world.recipe["model"] |= {"heads": {"kind": heads, "horizon": 3}, **TRUNKS[trunk]}
    world.recipe["data"]["train"]["sources"] = [str(rows)]
    del world.recipe["data"]["eval"]
    world.recipe["weighting"] = WEIGHTINGS[weighting]
    world.recipe["train"] = {"max_steps": 3, "gradient_accumulation": 2}
    assert world.train("whole") == 0

    whole, parts = world.runs / "whole", world.runs / "parts"
    shutil.copytree(whole, parts)  # as it was after step 2
    shutil.rmtree(parts / "checkpoints" / "step-00000003")
    shutil.rmtree(parts / "final")
    assert world.train("parts", "--resume") == 0
    assert_same_run(whole, parts, step=3)

    final, checkpoint = load_model(whole / "final"), whole / "checkpoints" / "step-00000003"
    again = load_model(checkpoint).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in final.state_dict().items())
    assert final.heads_shape.kind == heads
