"""The norms before the unembedding with and without a gain."""

from pathlib import Path

import pytest
import torch

from wmtp.errors import CheckpointError
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.stored_config import SpecialTokens

from .toys import stream, toy_model

TOKENS = SpecialTokens(1, (2,))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["sequential", "parallel", "linear"])
def test_a_gain_that_moves_into_the_unembedding_changes_no_logit(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    plain = toy_model(1, tie_embeddings=tied)
    save_model(plain, tmp_path, special_tokens=TOKENS)
    heads = HeadsShape(3, kind=kind)  # type: ignore[arg-type]
    model = load_model(tmp_path, heads, final_norm_gain=False).eval()
    tokens_BS, _ = stream(2, 9, 1)
    torch.testing.assert_close(
        model.logits(tokens_BS)[:, :, 0], plain.logits(tokens_BS)[:, :, 0], rtol=0, atol=1e-5
    )
    assert not model.trunk_shape.tie_embeddings
    assert not model.trunk_shape.final_norm_gain
    names = dict(model.named_parameters())
    assert "trunk.norm.weight" not in names
    assert not any(name.endswith(("shared_head.norm.weight", "s.0.norm.weight")) for name in names)
    assert all(bool((p.isfinite()).all()) for p in model.state_dict().values())


def test_a_trunk_without_gain_is_stored_and_read_again(tmp_path: Path) -> None:
    save_model(toy_model(1, tie_embeddings=True), tmp_path / "a", special_tokens=TOKENS)
    model = load_model(tmp_path / "a", HeadsShape(3), final_norm_gain=False)
    save_model(model, tmp_path / "b", special_tokens=TOKENS)
    for asked in (None, False):
        again = load_model(tmp_path / "b", HeadsShape(3), final_norm_gain=asked)
        for (name, one), (_, other) in zip(
            model.state_dict().items(), again.state_dict().items(), strict=True
        ):
            assert torch.equal(one, other), name
    with pytest.raises(CheckpointError, match="has no gain in its last norm"):
        load_model(tmp_path / "b", final_norm_gain=True)


def test_gains_of_stored_heads_and_foreign_trunks_stay(tmp_path: Path) -> None:
    save_model(toy_model(3), tmp_path / "a", special_tokens=TOKENS)
    with pytest.raises(CheckpointError, match="has heads with gains"):
        load_model(tmp_path / "a", final_norm_gain=False)
    assert load_model(tmp_path / "a", trunk_only=True, final_norm_gain=False).horizon == 1
    save_model(toy_model(1, trunk="gpt2"), tmp_path / "b", special_tokens=TOKENS)
    with pytest.raises(CheckpointError, match="run by transformers"):
        load_model(tmp_path / "b", HeadsShape(2), final_norm_gain=False)


def test_stored_heads_go_on_in_another_context(tmp_path: Path) -> None:
    save_model(toy_model(3), tmp_path, special_tokens=TOKENS)
    model = load_model(tmp_path, HeadsShape(3, context="mix"))
    assert model.heads_shape.context == "mix"
    assert model.heads is not None
    assert model.heads.shape.context == "mix"
