"""What mlx_lm needs in a directory; whether it then computes the same is for tests/verify."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.export.toys import model_directory
from wmtp.export.mlx import export_mlx
from wmtp.model.hf_layout import load_model


@pytest.mark.parametrize("kind", ["sequential", "parallel", "linear"])
def test_heads_stay_behind_and_the_user_is_told(kind: str, tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", kind=kind)
    assert export_mlx(source, tmp_path / "out") == [
        "mlx_lm runs no extra heads: this is the trunk alone."
    ]
    assert export_mlx(source, tmp_path / "out", trunk_only=True) == []
    ordinary = load_model(source, trunk_only=True).state_dict()
    assert len(load_file(tmp_path / "out/model.safetensors")) == len(ordinary)
    assert "mtp_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_keys_and_names_are_those_that_mlx_lm_reads(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", trunk="gpt2", tie_embeddings=True)
    assert "model_type 'gpt2'" in export_mlx(source, tmp_path / "out", dtype="f16")[1]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["n_ctx"], config["n_head"], config["layer_norm_epsilon"]) == (96, 4, 1e-5)
    assert "wte.weight" in load_file(tmp_path / "out/model.safetensors")
    source = model_directory(tmp_path / "neox", trunk="gpt_neox")
    export_mlx(source, tmp_path / "neox-out")
    config = json.loads((tmp_path / "neox-out/config.json").read_text())
    assert config["rotary_emb_base"] == config["rope_parameters"]["rope_theta"]
    assert 0 < config["rotary_pct"] <= 1
    assert "embed_out.weight" in load_file(tmp_path / "neox-out/model.safetensors")
