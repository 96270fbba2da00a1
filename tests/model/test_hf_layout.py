import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.stored_config import SpecialTokens

from .toys import toy_model

TOKENS = SpecialTokens(1, (2,))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("hidden", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_saving_and_loading_is_bit_exact(hidden: str, shard_bytes: int, tmp_path: Path) -> None:
    model = toy_model(4, hidden, qk_norm=True)
    save_model(model, tmp_path, special_tokens=TOKENS, max_shard_bytes=shard_bytes)
    again = load_model(tmp_path)
    assert again.heads_shape.horizon == 4
    assert again.heads_shape.hidden == hidden
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes > 20_000)
    for (name, one), (_, other) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_names_are_those_of_the_format(tmp_path: Path) -> None:
    save_model(toy_model(2, qk_norm=True), tmp_path, special_tokens=TOKENS)
    names = set(load_file(tmp_path / "model.safetensors"))
    depth = {f"model.layers.2.{rest}.weight" for rest in (
        "enorm", "hnorm", "eh_proj", "shared_head.norm", "input_layernorm",
        "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj",
        "mlp.up_proj", "mlp.down_proj",
    )}  # fmt: skip
    assert {name for name in names if ".layers.2." in name} == depth
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_mtp_layers"] == config["num_nextn_predict_layers"] == 1
    assert config["mtp_config"]["kind"] == "sequential"
    assert "auto_map" not in config


def test_a_tied_matrix_is_stored_once(tmp_path: Path) -> None:
    save_model(toy_model(1, tie_embeddings=True), tmp_path, special_tokens=TOKENS)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_new_heads_begin_on_a_trunk_without_any(tmp_path: Path) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=TOKENS)
    model = load_model(tmp_path, HeadsShape(3))
    assert model.horizon == 3
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("wanted", [HeadsShape(2), HeadsShape(4), HeadsShape(3, "pre_norm")])
def test_other_heads_than_the_stored_ones_are_refused(wanted: HeadsShape, tmp_path: Path) -> None:
    save_model(toy_model(3), tmp_path, special_tokens=TOKENS)
    with pytest.raises(CheckpointError, match=r"holds heads with (horizon 3|hidden post_norm)"):
        load_model(tmp_path, wanted)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=TOKENS)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "of_tomorrow"}, "knows no model_type 'of_tomorrow'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"hidden_size": 64}, "has shape"),
        ({"num_hidden_layers": 1}, "no place for model.layers"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"num_mtp_layers": 2}, "horizon is 1, but num_mtp_layers is 2"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=TOKENS)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=TOKENS)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        load_model(tmp_path)


def test_an_index_cannot_reach_outside_the_folder(tmp_path: Path) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=TOKENS)
    (tmp_path / "model.safetensors").rename(tmp_path.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not beside it"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x00" * 8 + b"{}"])
def test_a_broken_weights_file_is_refused(content: bytes, tmp_path: Path) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=TOKENS)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)
