"""The trunk computes what transformers computes, and either reads what the other wrote."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config
from transformers.models.qwen3 import Qwen3ForCausalLM

from wmtp.model.generate import Sampling, generate
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.stored_config import SpecialTokens

from .toys import stream, toy_model

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama wide heads": LlamaConfig(**SIZES, head_dim=12),
    "llama 3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "smollm2": LlamaConfig(
        **(SIZES | {"num_attention_heads": 8, "num_key_value_heads": 4}),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3 tied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
}


def randomized(model: torch.nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.7, 1.3)
            else:
                parameter.normal_(0, 0.2)
    return model.eval()


def assert_close_to_largest(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_we_load_what_transformers_saves(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    kind = Qwen3ForCausalLM if config.model_type == "qwen3" else LlamaForCausalLM
    theirs = randomized(kind(config))
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path).eval()
    tokens, _ = stream(2, 40, 1)
    ours = model.next_token_hidden(tokens) @ model.unembedding_VD.T
    assert_close_to_largest(ours, theirs(tokens).logits)


@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("horizon", [1, 3])
@torch.no_grad()
def test_plain_transformers_loads_the_trunk_we_save(
    qk_norm: bool, tied: bool, horizon: int, tmp_path: Path
) -> None:
    model = toy_model(horizon, qk_norm=qk_norm, tie_embeddings=tied)
    save_model(model, tmp_path, special_tokens=SpecialTokens(None, (0,)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens, _ = stream(2, 40, 1)
    ours = model.next_token_hidden(tokens) @ model.unembedding_VD.T
    assert_close_to_largest(ours, theirs(tokens).logits)


@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
@torch.no_grad()
def test_transformers_drafts_with_our_heads_and_equals_greedy(
    qk_norm: bool, tmp_path: Path
) -> None:
    model = toy_model(4, qk_norm=qk_norm)
    save_model(model, tmp_path, special_tokens=SpecialTokens(None, ()))
    plain = Qwen3ForCausalLM if qk_norm else LlamaForCausalLM

    class WithHeads(plain):  # type: ignore[valid-type, misc]
        _keys_to_ignore_on_load_unexpected = [r"model\.layers\.(2|3|4)\."]  # noqa: RUF012

    theirs = WithHeads.from_pretrained(tmp_path).eval()
    prompt, _ = stream(1, 7, 1)
    options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    greedy = theirs.generate(prompt, **options)
    drafted = theirs.generate(prompt, **options, use_mtp=True)
    ours = list(generate(model, prompt[0].tolist(), max_new_tokens=20))
    assert drafted[0].tolist() == greedy[0].tolist() == prompt[0].tolist() + ours


def test_greedy_decoding_equals_transformers(tmp_path: Path) -> None:
    model = toy_model(1)
    save_model(model, tmp_path, special_tokens=SpecialTokens(None, ()))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt, _ = stream(1, 5, 1)
    expected = theirs.generate(
        prompt, max_new_tokens=30, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    found = list(generate(model, prompt[0].tolist(), max_new_tokens=30, sampling=Sampling()))
    assert prompt[0].tolist() + found == expected[0].tolist()
