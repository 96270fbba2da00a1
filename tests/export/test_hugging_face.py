"""An exported directory holds the model's numbers, and loads where nobody knows of heads."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.export.toys import TEMPLATE, model_directory, tokenizer
from tests.model.test_foreign_layouts import meta_directory
from tests.model.toys import KINDS, stream
from wmtp.errors import ConfigError, StorageError
from wmtp.export.hugging_face import export_hugging_face
from wmtp.model.hf_layout import StoredForm, load_model

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.mark.parametrize(
    ("trunk", "kind", "dtype"),
    [
        *(("llama", kind, dtype) for kind in KINDS for dtype in DTYPES),
        ("qwen3", "sequential", "bf16"),
        *(("gpt2", kind, "f16") for kind in KINDS),
    ],
)
def test_what_is_written_is_the_model_rounded(
    trunk: str, kind: str, dtype: str, tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "model", kind=kind, trunk=trunk)
    export_hugging_face(source, tmp_path / "out", dtype=dtype)  # type: ignore[arg-type]
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {DTYPES[dtype]}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == str(DTYPES[dtype])[6:]
    ours, theirs = load_model(source), load_model(tmp_path / "out")
    assert theirs.heads_shape == ours.heads_shape
    for (name, one), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(one.to(DTYPES[dtype]).float(), other), name


@pytest.mark.parametrize(
    ("trunk", "kind", "tied"),
    [
        *(("llama", kind, tied) for kind in KINDS for tied in (False, True)),
        ("qwen3", "sequential", True),
        *(("gpt2", kind, True) for kind in KINDS),
        ("opt", "linear", False),
    ],
)
@torch.no_grad()
def test_a_trunk_alone_is_an_ordinary_model(
    trunk: str, kind: str, tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = model_directory(tmp_path / "model", kind=kind, trunk=trunk, tie_embeddings=tied)
    assert export_hugging_face(source, tmp_path / "out", trunk_only=True) == []
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert not {"mtp_config", "num_mtp_layers", "num_nextn_predict_layers"} & config.keys()
    assert not config.get("mtp_layer_types")
    with caplog.at_level(logging.WARNING, logger="transformers"):
        theirs, told = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]
    ours = load_model(source).eval()
    tokens, _ = stream(2, 20, 1)
    logits = ours.next_token_hidden(tokens) @ ours.unembedding_VD.T
    torch.testing.assert_close(theirs.eval()(tokens).logits, logits, atol=1e-5, rtol=1e-5)


def test_tokenizer_and_chat_template_go_along(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    (source / "tokenizer_config.json").unlink()  # written again: without it a class is guessed
    export_hugging_face(source, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "def f(x):\n  return  x  # 안녕"
    assert theirs(text)["input_ids"] == [*tokenizer().bos_ids, *tokenizer().encode(text)]
    assert theirs.eos_token_id == tokenizer().eos_id
    assert theirs.chat_template == TEMPLATE


def test_parallel_heads_go_through_mtp_llama_and_back(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model", kind="parallel")
    (note,) = export_hugging_face(source, tmp_path / "there", layout="mtp_llama")
    assert "Fast-LLM" in note
    config = json.loads((tmp_path / "there/config.json").read_text())
    assert (config["model_type"], config["prediction_heads"]) == ("mtp_llama", 4)
    export_hugging_face(tmp_path / "there", tmp_path / "back")
    before, after = (load_file(d / "model.safetensors") for d in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_metas_layout_comes_in(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    meta_directory(tmp_path / "meta")
    export_hugging_face(tmp_path / "meta", tmp_path / "out")
    tokens, targets = stream(1, 9, 3)
    ours, theirs = (load_model(tmp_path / name).eval() for name in ("meta", "out"))
    assert theirs.heads_shape == ours.heads_shape
    assert torch.equal(ours.logits(tokens, targets), theirs.logits(tokens, targets))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"layout": "mtp_llama"}, "for parallel heads .* this model has sequential heads"),
        ({"kind": "parallel", "trunk": "qwen3"}, {"layout": "mtp_llama"}, "a trunk with QK-norm"),
        ({"kind": "parallel", "trunk": "gpt2"}, {"layout": "mtp_llama"}, "on a hf trunk"),
        ({"kind": "parallel"}, {"layout": "mtp_llama", "trunk_only": True}, "there are none"),
        ({"horizon": 1}, {"layout": "mtp_llama"}, "there are none"),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_fit_is_refused(
    changes: dict[str, object], options: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "model", **changes)
    with pytest.raises(ConfigError, match=message):
        export_hugging_face(source, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_numbers_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    source = model_directory(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = 70000.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"trunk\.norm\.weight has numbers up to 70000"):
        export_hugging_face(source, tmp_path / "out", dtype="f16")
    export_hugging_face(source, tmp_path / "out", dtype="bf16")


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    source, out = model_directory(tmp_path / "model"), tmp_path / "out"
    for refused, message in (
        (source, "the model itself"),
        (tmp_path / "step-00000001", "would pass for a checkpoint"),
        (model_directory(tmp_path / "other"), "holds something that is not an export"),
        (source / "config.json", "holds something that is not an export"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_hugging_face(source, refused)
    out.mkdir()
    export_hugging_face(source, out)
    export_hugging_face(source, out, trunk_only=True, dtype="bf16")
    assert json.loads((out / "export.json").read_text()) == {
        "to": "hf", "layout": "hf", "dtype": "bf16", "trunk_only": True
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other", "out"]


def test_a_disk_that_refuses_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = model_directory(tmp_path / "model"), tmp_path / "out"
    export_hugging_face(source, out)
    before = (out / "model.safetensors").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoredForm, "write", refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        export_hugging_face(source, out, dtype="bf16")
    assert (out / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"hidden": "pre_norm", "final_norm_gain": False}, None),
        ({"hidden": "pre_norm"}, "before the last norm"),
        ({"context": "trunk"}, "in the context of llama.cpp"),
        ({"kind": "linear"}, "linear heads on a llama trunk are decoded by wmtp alone"),
        ({"trunk": "gpt2"}, "sequential heads on a hf trunk are decoded by wmtp alone"),
    ],
)
def test_what_engines_make_of_the_heads_is_told(
    changes: dict[str, object], words: str | None, tmp_path: Path
) -> None:
    source = model_directory(tmp_path / "model", **changes)
    notes = export_hugging_face(source, tmp_path / "out")
    assert len(notes) == (words is not None)
    assert words is None or words in notes[0]
