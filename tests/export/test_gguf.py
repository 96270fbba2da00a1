import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.model.toys import toy_model
from tests.model_directories import write_model
from wmtp.errors import CheckpointError, ConfigError, StorageError
from wmtp.export.gguf import export_gguf
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.stored_config import SpecialTokens


def numbers_of(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor as float32, rows first."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), 3, "post_norm", qk_norm=True)


@pytest.mark.parametrize(
    ("dtype", "relative"),
    # half a unit of the last bit: 2^-11 with 10 bits behind the point, 2^-8 with 7; in q8_0 half of
    # a 127th of the largest of 32 numbers, which is at most about 4 deviations
    [("f32", 0.0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 0.02)],
)
def test_numbers_come_back_within_their_type(
    dtype: Any, relative: float, directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    export_gguf(directory, out, dtype=dtype)
    model, found = load_model(directory), numbers_of(out)
    for name, ours in (
        ("token_embd.weight", model.trunk.embedding_VD),
        ("blk.3.nextn.eh_proj.weight", model.state_dict()["heads.depths.1.eh_proj.weight"]),
        ("blk.1.attn_q.weight", model.state_dict()["trunk.layers.1.self_attn.q_proj.weight"]),
    ):
        expected = ours.detach().numpy()
        assert found[name].shape == expected.shape
        assert np.abs(found[name] - expected).max() <= relative * np.abs(expected).max()
    gain = model.state_dict()["heads.depths.0.shared_head.norm.weight"]  # norms are always f32
    assert np.array_equal(found["blk.2.nextn.shared_head_norm.weight"], gain.numpy())


def test_rows_that_q8_0_cannot_hold_are_f16_and_told(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    lines = export_gguf(directory, out, dtype="q8_0")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"  # rows of 48 numbers
    assert types["blk.2.nextn.eh_proj.weight"] == "Q8_0"
    assert sum("4 matrices are f16, not q8_0" in line for line in lines) == 1


def test_trunk_only_leaves_the_heads_and_says_so(directory: Path, tmp_path: Path) -> None:
    lines = export_gguf(directory, tmp_path / "model.gguf", dtype="f16", trunk_only=True)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["general.architecture"].contents() == "qwen3"
    assert reader.fields["qwen3.block_count"].contents() == 2
    assert not any("nextn" in tensor.name for tensor in reader.tensors)
    assert "the trunk alone: 2 sequential heads left out" in lines


def test_depths_that_llama_cpp_feeds_wrongly_are_told(tmp_path: Path) -> None:
    write_model(tmp_path / "m", 4, "post_norm", qk_norm=True, context="chained")
    lines = export_gguf(tmp_path / "m", tmp_path / "m.gguf", dtype="f32")
    assert any("--spec-draft-n-max 2" in line for line in lines)
    assert any("drafts exactly to depth 2" in line for line in lines)
    assert any("Train with heads.context: trunk or mix" in line for line in lines)


def test_parallel_heads_are_refused_and_their_trunk_is_not(tmp_path: Path) -> None:
    write_model(tmp_path / "m", 3, kind="parallel")
    with pytest.raises(CheckpointError, match="no parallel heads. Export with --trunk-only"):
        export_gguf(tmp_path / "m", tmp_path / "m.gguf", dtype="f32")
    assert not (tmp_path / "m.gguf").exists()
    export_gguf(tmp_path / "m", tmp_path / "m.gguf", dtype="f32", trunk_only=True)
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert len(names) == 3 + 2 * 9


def test_a_foreign_trunk_is_refused(tmp_path: Path) -> None:
    model = toy_model(1, trunk="gpt2")
    save_model(model, tmp_path, special_tokens=SpecialTokens(0, (0,)))
    with pytest.raises(CheckpointError, match="only Llama and Qwen3 trunks"):
        export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")


def test_numbers_beyond_f16_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = toy_model(1)
    with torch.no_grad():
        model.trunk.embedding_VD[0, 0] = 1e5  # f16 ends at 65504
    save_model(model, tmp_path / "m", special_tokens=SpecialTokens(0, (0,)))
    with pytest.raises(CheckpointError, match="too large for f16. Export with --dtype bf16"):
        export_gguf(tmp_path / "m", tmp_path / "m.gguf", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    lines = export_gguf(tmp_path / "m", tmp_path / "m.gguf", dtype="bf16")
    assert any("no tokenizer.json" in line for line in lines)


def test_a_folder_that_cannot_be_made_is_a_storage_error(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        export_gguf(directory, tmp_path / "file" / "m.gguf", dtype="f32")


def test_a_missing_library_is_told_with_its_command(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'wmtp\[gguf\]'"):
        export_gguf(directory, tmp_path / "m.gguf", dtype="f32")
