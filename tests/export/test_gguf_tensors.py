import pytest
import torch

from tests.model.toys import shape, toy_model
from wmtp.errors import CheckpointError
from wmtp.export.gguf_tensors import (
    choose_architecture,
    file_tensors,
    pairs_side_by_side,
    settings,
    slowdown_of_pairs,
)
from wmtp.model.heads import HeadsShape
from wmtp.model.meta_layout import rotate_by_halves
from wmtp.model.rotary import Llama3Scaling

SCALING = Llama3Scaling(8.0, 1.0, 4.0, 16)


@pytest.mark.parametrize(
    ("qk_norm", "heads", "gain", "expected"),
    [
        (False, HeadsShape(1), True, "llama"),
        (True, HeadsShape(1), True, "qwen3"),
        (True, HeadsShape(3, "post_norm"), True, "hy_v3"),
        (False, HeadsShape(3, "pre_norm"), True, "mimo2"),
        # without a gain the state is the same to the next norm on both sides of the last one
        (True, HeadsShape(3, "pre_norm"), False, "hy_v3"),
        (False, HeadsShape(3, "post_norm"), False, "mimo2"),
    ],
)
def test_architecture_follows_the_trunk_and_what_travels(
    qk_norm: bool, heads: HeadsShape, gain: bool, expected: str
) -> None:
    assert choose_architecture(shape(qk_norm=qk_norm, final_norm_gain=gain), heads) == expected


@pytest.mark.parametrize(
    ("changes", "heads", "what_to_do"),
    [
        ({}, HeadsShape(3, "post_norm"), "heads.hidden: pre_norm or model.final_norm_gain: false"),
        ({"qk_norm": True}, HeadsShape(3, "pre_norm"), "heads.hidden: post_norm"),
        ({}, HeadsShape(3, kind="parallel"), "no parallel heads. Export with --trunk-only"),
        ({}, HeadsShape(3, kind="linear"), "no linear heads. Export with --trunk-only"),
        ({"rope_scaling": SCALING}, HeadsShape(3, "pre_norm"), "rope_type is default"),
        ({"rope_scaling": SCALING, "qk_norm": True}, HeadsShape(1), "no rope_type llama3"),
    ],
)
def test_what_llama_cpp_does_not_run_is_refused_in_one_line(
    changes: dict[str, object], heads: HeadsShape, what_to_do: str
) -> None:
    with pytest.raises(CheckpointError, match=what_to_do) as refusal:
        choose_architecture(shape(**changes), heads)
    assert "\n" not in str(refusal.value)


def test_reordered_rows_are_those_of_metas_layout() -> None:
    """That layout turns neighbours too; reading it undoes what writing here does."""
    weight = torch.randn(16, 3)
    assert torch.equal(rotate_by_halves(pairs_side_by_side(weight, 8), 8), weight)


def test_slow_pairs_are_divided_by_the_factor_and_fast_ones_by_one() -> None:
    """theta 100 and 4 numbers a head: 1 and 0.1 radians; 2.5 and 0.25 turns within 16."""
    trunk = shape(head_dim=4, rope_theta=100.0, rope_scaling=Llama3Scaling(8.0, 1.0, 2.0, 16))
    assert torch.allclose(slowdown_of_pairs(trunk), torch.tensor([1.0, 8.0]))


def test_mimo2_has_fused_rows_and_an_unembedding_of_its_own() -> None:
    model = toy_model(2, "pre_norm", tie_embeddings=True)
    tensors = {t.name: t for t in file_tensors("mimo2", model.trunk_shape, model.state_dict())}
    attention = model.trunk.blocks[0].self_attn  # type: ignore[union-attr]
    expected = torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
    assert torch.equal(tensors["blk.0.attn_qkv.weight"].make(), expected)
    assert tensors["blk.0.attn_qkv.weight"].shape == (32 + 16 + 16, 32)
    assert "blk.0.attn_q.weight" not in tensors
    assert torch.equal(tensors["output.weight"].make(), model.unembedding_VD)
    others = file_tensors("hy_v3", model.trunk_shape, model.state_dict())
    assert "output.weight" not in {t.name for t in others}


def test_mimo2_looks_back_over_the_whole_context_in_every_layer() -> None:
    found = settings("mimo2", shape(), depths=2)
    assert found["attention.sliding_window"] == 64
    assert found["attention.sliding_window_pattern"] == [True, False, False, False]
    assert found["rope.freq_base_swa"] == found["rope.freq_base"] == 10000.0
    assert (found["block_count"], found["nextn_predict_layers"]) == (4, 2)
    assert "nextn_predict_layers" not in settings("llama", shape(), depths=0)
