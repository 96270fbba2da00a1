"""mlx_lm runs what we export, on its CPU backend, in a process of its own.

``pip install '.[test]'`` brings it; ``WMTP_MLX_PYTHON`` names a Python that has it elsewhere.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.export.toys import model_directory
from tests.verify.test_hugging_face import change_config, change_tensor
from wmtp.errors import CheckpointError, ConfigError
from wmtp.export.hugging_face import export_hugging_face
from wmtp.export.mlx import export_mlx
from wmtp.verify.check import Check
from wmtp.verify.mlx import verify_mlx

HERE = sys.executable if importlib.util.find_spec("mlx_lm") else None
PYTHON = os.environ.get("WMTP_MLX_PYTHON", HERE)
needs_mlx = pytest.mark.skipif(PYTHON is None, reason="needs mlx_lm, or WMTP_MLX_PYTHON")


def verified(source: Path, out: Path) -> dict[str, Check]:
    python = Path(PYTHON) if PYTHON else None
    prompts = ("def add(a", "b, c = 1")
    checks = verify_mlx(source, out, prompts, new_tokens=8, python=python)
    return {check.name: check for check in checks}


@needs_mlx
@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"kind": "parallel"}, "f32"),
        ({"trunk": "qwen3", "tie_embeddings": True}, "bf16"),
        ({"trunk": "gpt2", "tie_embeddings": True}, "f16"),
    ],
    ids=str,
)
def test_mlx_computes_the_trunk(changes: dict[str, object], dtype: Any, tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", **changes)
    export_mlx(source, tmp_path / "out", dtype=dtype)
    checks = verified(source, tmp_path / "out")
    assert all(check.passed for check in checks.values()), checks
    assert checks["trunk's logits"].limit == 1e-4
    assert len(checks) == (4 if dtype == "f32" else 5)


@needs_mlx
def test_a_damaged_matrix_fails_and_what_mlx_does_not_know_is_refused(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    export_hugging_face(source, tmp_path / "out", trunk_only=True)  # as good as --to mlx
    change_tensor(tmp_path / "out", "model.layers.1.self_attn.v_proj.weight", lambda x: x * 1.1)
    failed = {
        name for name, check in verified(source, tmp_path / "out").items() if not check.passed
    }
    assert {"tensors that differ", "trunk's logits"} <= failed
    source = model_directory(tmp_path / "opt", trunk="opt", tie_embeddings=True)
    export_mlx(source, tmp_path / "opt-out")
    with pytest.raises(CheckpointError, match="cannot be run by mlx_lm .*opt not supported"):
        verified(source, tmp_path / "opt-out")


def test_what_does_not_fit_is_refused_before_mlx_runs(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    nobody = tmp_path / "no-python"
    export_hugging_face(source, tmp_path / "heads")
    with pytest.raises(CheckpointError, match="holds heads, which mlx_lm refuses"):
        verify_mlx(source, tmp_path / "heads", ("def f(x)",), python=nobody)
    export_mlx(source, tmp_path / "out")
    change_config(tmp_path / "out", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match="num_layers is 1 there, and 2 in the model"):
        verify_mlx(source, tmp_path / "out", ("def f(x)",), python=nobody)
    export_mlx(source, tmp_path / "out")
    path = tmp_path / "out/model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        verify_mlx(source, tmp_path / "out", ("def f(x)",), python=nobody)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "--python is .*no-python', which cannot be started: No such file"),
        ("echo \"No module named 'mlx'\" >&2; exit 3", "MLX is not installed for .*pip install"),
    ],
    ids=["no Python", "no MLX"],
)
def test_a_missing_engine_is_one_line(script: str | None, message: str, tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    export_mlx(source, tmp_path / "out")
    python = tmp_path / "no-python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    with pytest.raises(ConfigError, match=message) as caught:
        verify_mlx(source, tmp_path / "out", ("def f(x)",), new_tokens=1, python=python)
    assert "\n" not in str(caught.value)
