"""What a model directory may hold besides the plain case, and what saving leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.model.toys import shape, stream, toy_model
from wmtp.errors import CheckpointError, StorageError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model, save_model, tokenizer_files
from wmtp.model.multi_token import build_model
from wmtp.model.rotary import Llama3Scaling
from wmtp.model.stored_config import SpecialTokens

TOKENS = SpecialTokens(1, (2, 3), 0)
WEIGHTS = "model.safetensors"


def save(model: torch.nn.Module, folder: Path, **options: object) -> None:
    save_model(model, folder, special_tokens=TOKENS, **options)  # type: ignore[arg-type]


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_stored_heads_can_be_left_on_the_disk(tmp_path: Path) -> None:
    model = toy_model(4)
    save(model, tmp_path)
    trunk = load_model(tmp_path, trunk_only=True).eval()
    tokens_BS, _ = stream(1, 9, 1)
    assert trunk.horizon == 1
    assert torch.equal(trunk.next_token_hidden(tokens_BS), model.next_token_hidden(tokens_BS))
    with pytest.raises(ValueError, match="trunk_only"):
        load_model(tmp_path, HeadsShape(4), trunk_only=True)


def test_dropout_is_the_runs_and_the_asked_head_scale_wins(tmp_path: Path) -> None:
    save(toy_model(2), tmp_path)
    model = load_model(tmp_path, HeadsShape(2, head_scale=(1.0, 0.5)), dropout=0.25)
    assert model.heads is not None
    blocks = [*model.trunk.blocks, *(depth.block for depth in model.heads.chain)]
    assert [block.dropout for block in blocks] == [0.25] * 3
    assert model.heads_shape.head_scale == (1.0, 0.5)


def test_a_config_says_again_what_was_saved(tmp_path: Path) -> None:
    trunk = shape(
        qk_norm=True,
        tie_embeddings=True,
        final_norm_gain=False,
        rope_scaling=Llama3Scaling(4.0, 1.0, 2.0, 32),
    )
    heads = HeadsShape(3, "pre_norm", (1.0, 0.3, 0.3))
    save(build_model(trunk, heads, seed=0), tmp_path)
    stored = read_config(tmp_path)
    assert (stored.trunk, stored.heads, stored.special_tokens) == (trunk, heads, TOKENS)


def test_absent_special_tokens_are_not_the_familys_default(tmp_path: Path) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=SpecialTokens())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.eos_token_id is None
    assert read_config(tmp_path).special_tokens == SpecialTokens()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_can_be_stored_in_half_the_room(dtype: torch.dtype, tmp_path: Path) -> None:
    model = toy_model(1)
    save(model, tmp_path, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == dtype
    assert torch.equal(theirs.lm_head.weight, model.unembedding_VD.to(dtype))


def test_a_model_replaces_the_one_before_it(tmp_path: Path) -> None:
    save(toy_model(1), tmp_path, max_shard_bytes=5_000)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    save(toy_model(1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        WEIGHTS,
    ]


def test_tokenizer_files_travel_along(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("tokenizer.json", "notes.txt"):
        (source / name).write_text("{}")
    save(toy_model(1), target, extra_files=tokenizer_files(source))
    assert (target / "tokenizer.json").is_file()
    assert not (target / "notes.txt").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        save(toy_model(1), tmp_path / "file")


def test_a_second_tied_matrix_must_be_the_same(tmp_path: Path) -> None:
    model = toy_model(1, tie_embeddings=True)
    save(model, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / WEIGHTS)
    assert torch.equal(load_model(tmp_path).unembedding_VD, model.unembedding_VD)
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_model(tmp_path)


def test_a_tensor_that_is_no_float_is_refused(tmp_path: Path) -> None:
    save(toy_model(1), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is stored as I8"):
        load_model(tmp_path)


def test_heads_of_unknown_training_are_refused(tmp_path: Path) -> None:
    save(toy_model(3), tmp_path)
    rewrite(tmp_path, mtp_config=None)
    with pytest.raises(CheckpointError, match="no mtp_config"):
        load_model(tmp_path)


def test_rotary_parameters_by_layer_type_are_refused(tmp_path: Path) -> None:
    save(toy_model(1), tmp_path)
    rewrite(tmp_path, rope_parameters={"full_attention": {"rope_theta": 1.0}})
    with pytest.raises(CheckpointError, match="differ by layer type"):
        load_model(tmp_path)


@pytest.mark.parametrize("window", [16, 64])
def test_mistral_is_read_unless_its_window_is_short(window: int, tmp_path: Path) -> None:
    save(toy_model(1), tmp_path)
    rewrite(tmp_path, model_type="mistral", sliding_window=window)
    if window < 64:
        with pytest.raises(CheckpointError, match="sliding_window is 16"):
            load_model(tmp_path)
    else:
        assert load_model(tmp_path).horizon == 1


def test_code_in_a_directory_is_never_followed(tmp_path: Path) -> None:
    save(toy_model(1), tmp_path)
    rewrite(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert load_model(tmp_path).horizon == 1


def test_one_line_lets_plain_transformers_draft_with_the_heads(tmp_path: Path) -> None:
    save_model(toy_model(3), tmp_path, special_tokens=SpecialTokens())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    theirs._keys_to_ignore_on_load_unexpected.add(r"model\.layers\.(2|3)\.")
    prompt, _ = stream(1, 6, 1)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    greedy = theirs.generate(prompt, **options)
    assert torch.equal(theirs.generate(prompt, use_mtp=True, **options), greedy)
