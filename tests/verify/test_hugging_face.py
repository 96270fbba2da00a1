"""transformers runs what we export; what is damaged, foreign or mismatching does not pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.toys import model_directory
from tests.model.toys import toy_model
from wmtp.errors import CheckpointError, DataError
from wmtp.export.hugging_face import export_hugging_face
from wmtp.model.hf_layout import save_model
from wmtp.model.stored_config import SpecialTokens
from wmtp.verify.check import Check
from wmtp.verify.hugging_face import verify_hugging_face

PROMPTS = ("def add(a", "b, c = 1")


def verified(source: Path, out: Path, **options: Any) -> dict[str, Check]:
    checks = verify_hugging_face(source, out, PROMPTS, **{"new_tokens": 7} | options)
    return {check.name: check for check in checks}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True, "trunk": "qwen3"},
        {"hidden": "pre_norm", "final_norm_gain": False},
        {"context": "mix", "horizon": 2},
    ],
    ids=str,
)
def test_every_depth_drafts_as_ours_does(changes: dict[str, object], tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", agreeing=True, **changes)
    export_hugging_face(source, tmp_path / "out")
    checks = verified(source, tmp_path / "out")
    assert all(check.passed for check in checks.values()), checks
    heads = int(changes.get("horizon", 4)) - 1  # type: ignore[call-overload]
    assert sum("head" in name for name in checks) == heads
    assert checks["share of drafts accepted"].limit == 0.02


def test_drafts_are_accepted_and_rejected_as_often_as_ours(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", agreeing=True)
    export_hugging_face(source, tmp_path / "out")
    check = verified(source, tmp_path / "out", new_tokens=30)["share of drafts accepted"]
    theirs, mine = (part.rsplit(": ", 1)[1].split() for part in check.detail.split(";"))
    assert check.found == 0
    assert theirs == mine, check.detail
    assert all(0 < float(share) < 1 for share in theirs[:2]), check.detail


@pytest.mark.parametrize("changes", [{"hidden": "pre_norm"}, {"context": "trunk"}], ids=str)
def test_heads_trained_for_other_engines_are_run_as_transformers_runs_them(
    changes: dict[str, object], tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "model", **changes)
    export_hugging_face(source, tmp_path / "out")
    checks = verified(source, tmp_path / "out")
    assert all(check.passed for check in checks.values()), checks
    assert "in another way" in checks["share of drafts accepted"].detail


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_sixteen_bits_are_held_to_the_limits_of_float32(dtype: Any, tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", trunk="qwen3")
    export_hugging_face(source, tmp_path / "out", dtype=dtype)
    checks = verified(source, tmp_path / "out", new_tokens=4)
    assert checks["trunk's logits"].limit == checks["head 3's logits"].limit == 1e-5
    served = next(check for name, check in checks.items() if "unrounded" in name)
    assert served.found > 1e-5  # it did run in 16 bits
    assert all(check.passed for check in checks.values()), checks


@pytest.mark.parametrize(
    ("changes", "options", "count"),
    [
        ({"kind": "parallel"}, {}, 4),
        ({"kind": "linear"}, {"trunk_only": True}, 4),
        ({"trunk": "gpt2"}, {}, 4),
        ({"trunk": "gpt2"}, {"trunk_only": True}, 4),
        ({"kind": "parallel"}, {"layout": "mtp_llama"}, 1),
    ],
    ids=str,
)
def test_heads_that_transformers_does_not_run_are_compared_as_stored(
    changes: dict[str, object], options: dict[str, Any], count: int, tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "model", **changes)
    export_hugging_face(source, tmp_path / "out", **options)
    checks = verified(source, tmp_path / "out", new_tokens=4)
    assert len(checks) == count
    assert all(check.passed for check in checks.values()), checks


def change_tensor(out: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(out / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_one_damaged_matrix_of_a_head_fails_there_and_not_before(
    dtype: Any, tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "model")
    export_hugging_face(source, tmp_path / "out", dtype=dtype)
    change_tensor(tmp_path / "out", "model.layers.3.eh_proj.weight", lambda x: x * 1.02)
    checks = verified(source, tmp_path / "out")
    failed = {name for name, check in checks.items() if not check.passed}
    assert {"tensors that differ", "head 2's logits", "head 3's logits"} <= failed
    assert checks["tensors that differ"].found == 1
    assert "model.layers.3.eh_proj.weight" in checks["tensors that differ"].detail
    for name in ("trunk's logits", "head 1's logits", "greedy texts with drafts that differ"):
        assert checks[name].passed, name


def test_a_damaged_trunk_and_nan_fail(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", kind="parallel")
    export_hugging_face(source, tmp_path / "out")
    change_tensor(tmp_path / "out", "model.layers.0.mlp.up_proj.weight", lambda x: -x)
    checks = verified(source, tmp_path / "out")
    assert not checks["trunk's logits"].passed
    assert not checks["greedy texts that differ"].passed
    change_tensor(tmp_path / "out", "model.mtp_heads.1.mlp.up_proj.weight", lambda x: x * torch.nan)
    assert verified(source, tmp_path / "out")["tensors that differ"].found == 2


def change_config(out: Path, **changes: object) -> None:
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(out: Path) -> None:
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def of_another_model(out: Path) -> None:
    tensors = load_file(out / "model.safetensors")
    save_file({name: x + 0.01 for name, x in tensors.items()}, out / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is not a whole safetensors file"),
        (lambda out: (out / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda out: (out / "config.json").write_text("{"), "cannot be read as JSON"),
        (of_another_model, "is an export of another model: 60 of its 60 tensors differ"),
        (lambda out: change_config(out, rms_norm_eps=1e-3), "norm_eps is 0.001 there, and 1e-05"),
        (lambda out: change_config(out, rope_parameters=None, rope_theta=5.0), "rope_theta is 5.0"),
        (lambda out: change_config(out, vocab_size=301), "vocab_size is 301 there, and 300 in"),
        (lambda out: change_config(out, model_type="gpt2"), "model_type is 'gpt2'"),
        (lambda out: change_tensor(out, "model.norm.weight", lambda x: x[:-1].clone()),
         "model.norm.weight is .31. there"),
        (lambda out: change_tensor(out, "model.norm.weight", torch.Tensor.double), "stored as F64"),
        (lambda out: change_tensor(out, "model.more.weight", lambda x: x), "has no place for"),
    ],
)  # fmt: skip
def test_a_spoiled_export_is_refused_before_the_engine_runs(
    damage: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_directory(tmp_path / "model")
    export_hugging_face(source, tmp_path / "out")
    if "no place" in message:
        tensors = load_file(tmp_path / "out/model.safetensors")
        tensors["model.more.weight"] = torch.zeros(2)
        save_file(tensors, tmp_path / "out/model.safetensors")
    damage(tmp_path / "out")
    monkeypatch.setattr("wmtp.verify.hugging_face.read_network", None)
    with pytest.raises(CheckpointError, match=message) as caught:
        verified(source, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": 64}, "hidden_size"),
        ({"num_layers": 3}, "num_layers"),
        ({"trunk": "qwen3"}, "qk_norm"),
        ({"tie_embeddings": True}, "tie_embeddings"),
        ({"horizon": 3}, "horizon of the heads"),
        ({"kind": "parallel"}, "kind of the heads"),
        ({"hidden": "pre_norm"}, "hidden of the heads"),
    ],
    ids=str,
)
def test_an_export_of_a_model_of_another_shape_is_refused(
    changes: dict[str, object], key: str, tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "model")
    other = model_directory(tmp_path / "other", **changes)
    export_hugging_face(other, tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"is no export of .*: {key} is"):
        verified(source, tmp_path / "out")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    model = toy_model(4, vocab_size=300, max_seq_length=96)
    save_model(
        model, tmp_path / "out", special_tokens=SpecialTokens(None, (0,)), max_shard_bytes=99_999
    )
    next((tmp_path / "out").glob("model-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match="names the shard"):
        verified(source, tmp_path / "out")


def test_prompts_that_cannot_be_continued_are_refused(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    export_hugging_face(source, tmp_path / "out")
    for prompts, count, message in (
        ((), 4, "there is no prompt"),
        (("",), 4, "has 1 tokens, and at least 3 are needed"),
        (("ab " * 60,), 4, "has room for 88. Shorten it"),
        (("def f(x)",), 90, "or lower --new-tokens"),
    ):
        with pytest.raises(DataError, match=message):
            verify_hugging_face(source, tmp_path / "out", prompts, new_tokens=count)
