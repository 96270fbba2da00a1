"""Directories that others write: Meta's, ``mtp_llama``, and what ``transformers`` itself saves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.model.toys import stream, toy_model
from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.stored_config import SpecialTokens

TOKENS = SpecialTokens(1, (2,), 0)
D, F, V, N, G, C = 32, 48, 64, 4, 2, 8


def meta_directory(folder: Path, layers: int = 2, extra: int = 2) -> dict[str, Tensor]:
    """A small checkpoint with the names and shapes of Meta's."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * 0.2

    tensors = {
        "tok_embeddings.weight": random(V, D),
        "norm.weight": random(D).abs() + 0.5,
        "output.weight": random(V, D),
        "rope.freqs": random(C // 2),
    }
    for prefix, count in (("layers", layers), ("extra_heads", extra)):
        for index in range(count):
            tensors |= {
                f"{prefix}.{index}.attention.wq.weight": random(N * C, D),
                f"{prefix}.{index}.attention.wk.weight": random(G * C, D),
                f"{prefix}.{index}.attention.wv.weight": random(G * C, D),
                f"{prefix}.{index}.attention.wo.weight": random(D, N * C),
                f"{prefix}.{index}.feed_forward.w1.weight": random(F, D),
                f"{prefix}.{index}.feed_forward.w2.weight": random(D, F),
                f"{prefix}.{index}.feed_forward.w3.weight": random(F, D),
                f"{prefix}.{index}.attention_norm.weight": random(D).abs() + 0.5,
                f"{prefix}.{index}.ffn_norm.weight": random(D).abs() + 0.5,
            }
    params = {"dim": D, "n_heads": N, "n_kv_heads": G, "n_layers": 4, "n_future_tokens": 3}
    (folder / "params.json").write_text(json.dumps(params | {"norm_eps": 1e-5, "vocab_size": V}))
    save_file(tensors, folder / "model.safetensors")
    return tensors


def meta_block(t: dict[str, Tensor], prefix: str, x_SD: Tensor) -> Tensor:
    """One layer as Meta's code computes it: neighbouring numbers are rotated as complex pairs."""

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain

    def rotated(x_SNC: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x_SNC.reshape(*x_SNC.shape[:-1], C // 2, 2))
        angles = torch.arange(len(x_SNC))[:, None] / 10000 ** (torch.arange(0, C, 2) / C)
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(-2)

    S = len(x_SD)
    h = norm(x_SD, t[f"{prefix}.attention_norm.weight"])
    q = rotated((h @ t[f"{prefix}.attention.wq.weight"].T).view(S, N, C))
    k = rotated((h @ t[f"{prefix}.attention.wk.weight"].T).view(S, G, C))
    v = (h @ t[f"{prefix}.attention.wv.weight"].T).view(S, G, C)
    k, v = (x.repeat_interleave(N // G, dim=1) for x in (k, v))
    scores = torch.einsum("snc,tnc->nst", q, k) / C**0.5
    scores = scores.masked_fill(~torch.ones(S, S, dtype=torch.bool).tril(), -torch.inf)
    mixed = torch.einsum("nst,tnc->snc", scores.softmax(-1), v).flatten(1)
    x_SD = x_SD + mixed @ t[f"{prefix}.attention.wo.weight"].T
    h = norm(x_SD, t[f"{prefix}.ffn_norm.weight"])
    gate = torch.nn.functional.silu(h @ t[f"{prefix}.feed_forward.w1.weight"].T)
    inner = gate * (h @ t[f"{prefix}.feed_forward.w3.weight"].T)
    return x_SD + inner @ t[f"{prefix}.feed_forward.w2.weight"].T


@torch.no_grad()
def test_metas_layout_computes_what_metas_code_computes(tmp_path: Path) -> None:
    tensors = meta_directory(tmp_path)
    model = load_model(tmp_path).eval()
    assert model.heads_shape == HeadsShape(3, kind="parallel")
    tokens_BS, targets_BSH = stream(1, 9, 3)
    logits_SHV = model.logits(tokens_BS, targets_BSH)[0]

    x_SD = tensors["tok_embeddings.weight"][tokens_BS[0]]
    x_SD = meta_block(tensors, "layers.0", x_SD)
    for h, prefix in enumerate(("layers.1", "extra_heads.0", "extra_heads.1")):
        y_SD = meta_block(tensors, prefix, x_SD)
        y_SD = y_SD * (y_SD.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        expected_SV = (y_SD * tensors["norm.weight"]) @ tensors["output.weight"].T
        torch.testing.assert_close(logits_SHV[:, h], expected_SV, atol=1e-4, rtol=1e-4)


def test_metas_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps({"dim": D, "n_heads": N}))
    (tmp_path / "consolidated.pth").write_bytes(b"not even a pickle")
    with pytest.raises(CheckpointError, match=r"consolidated\.pth, a pickle"):
        load_model(tmp_path)


def test_meta_params_that_are_none_are_refused(tmp_path: Path) -> None:
    meta_directory(tmp_path)
    (tmp_path / "params.json").write_text('{"dim": "wide"}')
    with pytest.raises(CheckpointError, match=r"params\.json is not"):
        load_model(tmp_path)


def test_mtp_llama_is_written_with_its_names_and_read_back(tmp_path: Path) -> None:
    model = toy_model(3, kind="parallel")
    save_model(model, tmp_path, special_tokens=TOKENS, layout="mtp_llama")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["prediction_heads"]) == ("mtp_llama", 3)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "model.norm.weight" not in tensors
    for h in range(3):
        assert tensors[f"model.mtp_norms.{h}.weight"].shape == (32,)
    for k in range(2):
        assert tensors[f"model.mtp_heads.{k}.self_attn.q_proj.weight"].shape == (32, 32)
    assert torch.equal(tensors["model.mtp_norms.0.weight"], model.trunk.norm.weight)
    loaded = load_model(tmp_path)
    for (name, one), other in zip(
        model.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_mtp_llama_of_others_has_no_section_of_ours(tmp_path: Path) -> None:
    save_model(toy_model(3, kind="parallel"), tmp_path, special_tokens=TOKENS, layout="mtp_llama")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["mtp_config"]
    path.write_text(json.dumps(config))
    assert read_config(tmp_path).heads == HeadsShape(3, kind="parallel")
    assert load_model(tmp_path, trunk_only=True).horizon == 1


@pytest.mark.parametrize("changes", [{"kind": "linear"}, {"kind": "parallel", "qk_norm": True}])
def test_mtp_llama_has_room_for_parallel_heads_only(
    changes: dict[str, object], tmp_path: Path
) -> None:
    model = toy_model(3, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mtp_llama"):
        save_model(model, tmp_path, special_tokens=TOKENS, layout="mtp_llama")


def gpt2_directory(folder: Path, **changes: object) -> GPT2LMHeadModel:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(**(sizes | {"bos_token_id": 1, "eos_token_id": 2}), **changes)
    )
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def test_a_gpt2_directory_gets_heads_and_keeps_its_own_words(tmp_path: Path) -> None:
    """The classic small test model: GPT-2 with linear heads, made, saved, read."""
    theirs = gpt2_directory(tmp_path / "base")
    model = load_model(tmp_path / "base", HeadsShape(4, kind="linear")).eval()
    tokens_BS, _ = stream(2, 9, 1)
    expected = theirs(tokens_BS).logits
    found = model.next_token_hidden(tokens_BS) @ model.unembedding_VD.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    save_model(model, tmp_path / "mtp", special_tokens=TOKENS)
    config = json.loads((tmp_path / "mtp" / "config.json").read_text())
    assert config["mtp_config"]["kind"] == "linear"
    assert (config["model_type"], config["n_embd"]) == ("gpt2", 32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "mtp")
    torch.testing.assert_close(again(tokens_BS).logits, expected, atol=1e-5, rtol=1e-5)
    tensors = load_file(tmp_path / "mtp" / "model.safetensors")
    assert tensors["mtp_heads.2.weight"].shape == (64, 32)
    assert "lm_head.weight" not in tensors  # tied: stored once


def test_dropout_of_a_foreign_trunk_is_the_recipes(tmp_path: Path) -> None:
    gpt2_directory(tmp_path, resid_pdrop=0.4, attn_pdrop=0.4)
    model = load_model(tmp_path)
    found = {m.p for m in model.trunk.modules() if isinstance(m, torch.nn.Dropout)}
    assert found == {0.0}
    model.set_dropout(0.2)
    assert {m.p for m in model.trunk.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("cohere", {}, "not its output times one matrix"),
        ("granite", {"logits_scaling": 2.0}, "not its output times one matrix"),
    ],
)
def test_scaled_logits_are_noticed(
    architecture: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        architecture, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, **changes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_pre_norm_heads_need_a_trunk_that_shows_that_state(tmp_path: Path) -> None:
    gpt2_directory(tmp_path)
    with pytest.raises(CheckpointError, match="pre_norm"):
        load_model(tmp_path, HeadsShape(3, "pre_norm"))


def test_code_of_a_directory_is_never_run(tmp_path: Path) -> None:
    gpt2_directory(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {
        "model_type": "brand_new",
        "auto_map": {
            "AutoConfig": "evil.Config",
            "AutoModelForCausalLM": "evil.Model",
        },
    }
    path.write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(CheckpointError, match="never done"):
        load_model(tmp_path)


def test_a_missing_tensor_of_a_foreign_trunk_is_named(tmp_path: Path) -> None:
    gpt2_directory(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks transformer\.h\.1\.mlp\.c_fc"):
        load_model(tmp_path)


def test_a_llama_may_be_run_by_foreign_code_too(tmp_path: Path) -> None:
    model = toy_model(1)
    save_model(model, tmp_path, special_tokens=TOKENS)
    foreign = load_model(tmp_path, HeadsShape(2, kind="parallel"), kind="hf").eval()
    tokens_BS, _ = stream(2, 9, 1)
    torch.testing.assert_close(
        foreign.next_token_hidden(tokens_BS),
        model.next_token_hidden(tokens_BS),
        atol=2e-5,
        rtol=1e-4,
    )
    save_model(foreign, tmp_path / "again", special_tokens=TOKENS)
    with pytest.raises(CheckpointError, match=r"model\.kind: hf"):
        load_model(tmp_path / "again", kind="llama")


def test_heads_beside_our_own_trunk_do_not_fit_foreign_code(tmp_path: Path) -> None:
    save_model(toy_model(3), tmp_path, special_tokens=TOKENS)
    with pytest.raises(CheckpointError, match=r"beside model\.kind: llama"):
        load_model(tmp_path, kind="hf")


@pytest.mark.parametrize("kind", ["parallel", "linear", "sequential"])
@torch.no_grad()
def test_new_heads_begin_as_the_trunks_prediction(kind: str, tmp_path: Path) -> None:
    """At half its confidence: the same favourite token for every head, up to a different norm."""
    save_model(toy_model(1, final_norm_gain=True), tmp_path, special_tokens=TOKENS)
    model = load_model(tmp_path, HeadsShape(3, kind=kind)).eval()  # type: ignore[arg-type]
    tokens_BS, targets_BSH = stream(2, 9, 3)
    logits_BSHV = model.logits(tokens_BS, targets_BSH)
    for h in (1, 2):
        torch.testing.assert_close(
            logits_BSHV[:, :, h] * 2, logits_BSHV[:, :, 0], atol=1e-3, rtol=1e-3
        )


def test_an_architecture_that_mixes_packed_documents_is_known(tmp_path: Path) -> None:
    """Bloom has no positions, but a slope per head that counts from the start of the row."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "bloom", vocab_size=64, hidden_size=32, n_layer=1, n_head=4, bos_token_id=1,
        eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(tmp_path).eval()
    assert model.trunk.longest_packed_row == 0
    tokens_BS, _ = stream(1, 8, 1)
    assert model.next_token_hidden(tokens_BS).shape == (1, 8, 32)
    with pytest.raises(ValueError, match="apart"):
        model.next_token_hidden(tokens_BS, torch.zeros(1, 8, dtype=torch.int32))
