"""What other architectures do that a trunk must not, and what is asked of each before it is one."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.model.toys import shape, stream
from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.hf_trunk import HfTrunk, build_hf_model
from wmtp.model.stored_config import SpecialTokens

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_SIZES = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}
XGLM_SIZES = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}
ONE = HeadsShape(1)


def directory(folder: Path, architecture: str, **changes: object) -> Path:
    """A model of this architecture with random numbers, none of them small."""
    ids = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **(ids | changes))
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    network.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_sliding_window_packs_rows_no_longer_than_itself(tmp_path: Path) -> None:
    """The mask for documents takes the place of the window's: longer rows would see too much."""
    sizes = LLAMA_SIZES | {"head_dim": 8, "sliding_window": 8}
    model = load_model(directory(tmp_path, "gemma3_text", **sizes)).eval()
    assert model.trunk.longest_packed_row == 8
    tokens_BS, _ = stream(1, 9, 1)
    documents_BS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="apart"):
        model.next_token_hidden(tokens_BS, documents_BS)
    packed = model.next_token_hidden(tokens_BS[:, :8], documents_BS[:, :8])
    alone = [model.next_token_hidden(tokens_BS[:, part]) for part in (slice(3), slice(3, 8))]
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_cache_goes_back_beyond_a_sliding_window(tmp_path: Path) -> None:
    sizes = LLAMA_SIZES | {"head_dim": 8, "sliding_window": 4}
    model = load_model(directory(tmp_path, "gemma3_text", **sizes)).eval()
    tokens_BS, _ = stream(1, 12, 1)
    whole = model.next_token_hidden(tokens_BS)
    cache = model.new_cache(12)
    model.next_token_hidden(tokens_BS, cache=cache)
    cache.crop(7)
    later = model.next_token_hidden(tokens_BS[:, 7:], cache=cache)
    torch.testing.assert_close(later, whole[:, 7:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("mixtral", LLAMA_SIZES | {"num_local_experts": 2}, "mixture of experts"),
        (
            "opt",
            SIZES | {"word_embed_proj_dim": 16, "ffn_dim": 48, "do_layer_norm_before": False},
            "16 and 16 wide beside a hidden_size of 32",
        ),
    ],
)
def test_no_dense_trunk_of_one_width(
    architecture: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(directory(tmp_path, architecture, **changes))


def test_without_keys_and_values_to_keep_there_is_no_decoding(tmp_path: Path) -> None:
    """The first GPT begins anew at every call: it would repeat one token for ever."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    model = load_model(directory(tmp_path, "openai-gpt", **sizes)).eval()
    with pytest.raises(CheckpointError, match="cannot decode"):
        model.new_cache(8)


@torch.no_grad()
def test_the_padding_that_an_architecture_computes_with_is_kept(tmp_path: Path) -> None:
    """Position 3 of XGLM is that of its padding token, and has no numbers of its own."""
    sizes = XGLM_SIZES | {"max_position_embeddings": 32, "pad_token_id": 5}
    model = load_model(directory(tmp_path / "base", "xglm", **sizes)).eval()
    tokens_BS, _ = stream(1, 12, 1)
    save_model(model, tmp_path / "saved", special_tokens=SpecialTokens(1, (2,)))
    again = load_model(tmp_path / "saved").eval()
    assert torch.equal(model.next_token_hidden(tokens_BS), again.next_token_hidden(tokens_BS))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("falcon", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
        ("starcoder2", {"residual_dropout": 0.5, "embedding_dropout": 0.5}),
        ("persimmon", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
        ("stablelm", LLAMA_SIZES | {"hidden_dropout": 0, "attention_dropout": 0}),
    ],
)
@torch.no_grad()
def test_the_recipes_dropout_is_all_there_is(
    architecture: str, changes: dict[str, object], tmp_path: Path
) -> None:
    model = load_model(directory(tmp_path, architecture, **(SIZES | changes))).train()
    tokens_BS, _ = stream(1, 12, 1)

    def two_passes_differ() -> bool:
        one, other = (model.next_token_hidden(tokens_BS) for _ in range(2))
        return not torch.equal(one, other)

    assert not two_passes_differ()
    model.set_dropout(0.3)
    assert two_passes_differ()


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("gemma2", "not its output times one matrix"),  # caps logits, which begin too small
        ("phi", "not its output times one matrix"),  # a bias that is 0 as built
        ("mamba", "no num_attention_heads"),
        ("bart", "encoder and decoder"),
        ("roberta", "cannot be run as a trunk"),
        ("reformer", "is_decoder"),
        ("trocr", "encoder_attn"),
        ("no_such_thing", "cannot build so"),
    ],
)
def test_untrained_architectures_are_refused_in_one_line(architecture: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        build_hf_model(architecture, shape(), HeadsShape(2), seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma", "mistral"])
def test_keys_and_values_of_other_numbers_of_heads_fit_those_asked_for(architecture: str) -> None:
    """As transformers has them there would be 4, 8 or 32 beside whatever number of heads."""
    model = build_hf_model(architecture, shape(num_heads=2), ONE, seed=0)
    assert isinstance(model.trunk, HfTrunk)
    assert model.trunk.network.config.num_key_value_heads == 2
    assert model.trunk.longest_packed_row == 64
