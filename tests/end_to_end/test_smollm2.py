"""The real SmolLM2-135M, where its package can be had; skipped, with the reason, where not."""

import importlib.util
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.model.hf_layout import load_model

from .conftest import World

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> Path:
    cache = os.environ.get("WMTP_CACHE")
    if not cache:
        pytest.skip("WMTP_CACHE names no folder to keep SmolLM2 in (make test sets it)")
    path = ROOT / "scripts" / "fetch_smollm2.py"
    spec = importlib.util.spec_from_file_location("fetch_smollm2", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        return script.fetch_smollm2(Path(cache) / "smollm2")
    except script.Unavailable as error:
        pytest.skip(f"SmolLM2 cannot be had: {error}")


@pytest.fixture(scope="module", autouse=True)
def both_cores() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def test_perplexity_of_real_code(
    smollm2: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp says 11.99, transformers 11.97, on the first 512 tokens of textwrap.py."""
    world.run("evaluate", "--model", str(smollm2), "--suite", "perplexity", "--data",
              str(textwrap.__file__), "--max-tokens", "512")  # fmt: skip
    figures = json.loads(capsys.readouterr().out)["perplexity"]
    assert figures["tokens"] == 511
    assert figures["perplexity"] == pytest.approx(11.97, abs=0.05)


def test_logits_are_those_of_transformers(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([list(range(100, 164))])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)(ids).logits
        model = load_model(smollm2).eval()
        ours = model.next_token_hidden(ids) @ model.unembedding_VD.T
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_heads_learn_on_mbpp_with_skipped_targets(smollm2: Path, world: World) -> None:
    """A few small steps; the real runs are in the README."""
    data = Path(os.environ.get("WMTP_DATA") or "/nonexistent") / "code" / "mbpp.jsonl"
    if not data.is_file():
        pytest.skip("WMTP_DATA names no folder with code/mbpp.jsonl")
    world.recipe = {
        "model": {"heads": {"horizon": 4}},
        "data": {
            "train": {
                "sources": [{"path": str(data), "split": "prompt"}],
                "max_length": 64,
                "batch_size": 1,
            },
            "eval": {
                "sources": [{"path": str(data), "split": "prompt"}],
                "batch_size": 2,
                "max_rows": 2,
            },
        },
        "weighting": {"algorithm": "rho1-wmtp", "mode": "token_skip"},
        "train": {"max_steps": 4, "eval_interval": 4, "freeze": "trunk"},
        "optim": {"lr": 1e-4, "scheduler": "constant"},
    }
    world.config["paths"]["models"] = {"base": str(smollm2), "ref": str(smollm2)}
    world.config["paths"]["checkpoints"] |= {"save_interval": 1000, "save_final": False}
    assert world.train("real") == 0
    lines = (world.runs / "real" / "metrics.jsonl").read_text().splitlines()
    before, after = (row for row in map(json.loads, lines) if "eval/loss" in row)
    assert after["eval/ce/head_0"] == before["eval/ce/head_0"]  # the trunk is frozen
    assert all(after[f"eval/ce/head_{h}"] < before[f"eval/ce/head_{h}"] for h in (1, 2, 3))
