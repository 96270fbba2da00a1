import pytest
import torch

from tests.model.toys import shape, stream, toy_model
from wmtp.model.heads import HeadsShape
from wmtp.model.multi_token import build_model


def test_a_table_built_while_decoding_serves_training() -> None:
    model = toy_model(2)
    tokens_BS, targets_BSH = stream(1, 8, 2)
    with torch.inference_mode():
        model.next_token_hidden(tokens_BS)
    sum(h_BSD.sum() for h_BSD in model(tokens_BS, targets_BSH)).backward()
    assert model.trunk.blocks[0].self_attn.q_proj.weight.grad is not None


def test_rotations_stay_float32_in_a_half_precision_model() -> None:
    model = toy_model(1).bfloat16()
    tokens_BS, _ = stream(1, 8, 1)
    assert model.next_token_hidden(tokens_BS).dtype == torch.bfloat16
    cos, _ = model.trunk.positions(8, None, 0).rope
    assert cos.dtype == torch.float32


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_autocast_trains_every_head(qk_norm: bool, packed: bool) -> None:
    model = toy_model(3, qk_norm=qk_norm).train()
    tokens_BS, targets_BSH = stream(2, 8, 3)
    documents_BS = torch.arange(8).expand(2, 8) // 4 if packed else None
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens_BS, targets_BSH, documents_BS)
    sum(h_BSD.float().sum() for h_BSD in hidden).backward()
    for parameter in model.trunk.blocks[0].parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_cached_rows_of_a_batch_can_be_cropped_and_read_again() -> None:
    model = toy_model(1)
    tokens_BS, _ = stream(3, 12, 1)
    whole_BSD = model.next_token_hidden(tokens_BS)
    cache = model.new_cache(12)
    with torch.no_grad():
        model.next_token_hidden(tokens_BS[:, :5], cache=cache)
        model.next_token_hidden(tokens_BS[:, 7:10], cache=cache)  # a wrong draft
        cache.crop(5)
        rest_BSD = model.next_token_hidden(tokens_BS[:, 5:], cache=cache)
    assert cache.length == 12
    torch.testing.assert_close(rest_BSD, whole_BSD[:, 5:])
    with pytest.raises(ValueError, match="do not fit into a cache of 12"):
        model.next_token_hidden(tokens_BS[:, :1], cache=cache)
    with pytest.raises(ValueError, match="crop"):
        cache.crop(13)


def test_positions_beyond_the_context_are_refused() -> None:
    model = toy_model(1, max_seq_length=8)
    with pytest.raises(ValueError, match="9 positions exceed max_seq_length 8"):
        model.next_token_hidden(torch.zeros(1, 9, dtype=torch.int64))


def test_dropout_acts_in_training_only_and_not_in_a_frozen_trunk() -> None:
    model = toy_model(1, dropout=0.5)
    tokens_BS, _ = stream(1, 8, 1)
    still = model.next_token_hidden(tokens_BS)
    assert torch.equal(still, model.next_token_hidden(tokens_BS))
    model.train()
    assert not torch.equal(still, model.next_token_hidden(tokens_BS))
    model.freeze_trunk()
    assert torch.equal(still, model.next_token_hidden(tokens_BS))


def test_recomputing_repeats_the_same_dropout() -> None:
    model = toy_model(2, dropout=0.3).train()
    tokens_BS, targets_BSH = stream(2, 8, 2)
    grads = []
    for checkpointing in (False, True):
        model.set_gradient_checkpointing(checkpointing)
        torch.manual_seed(0)
        model.zero_grad()
        sum(h_BSD.sum() for h_BSD in model(tokens_BS, targets_BSH)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_norms_without_gain_make_both_chains_one() -> None:
    tokens_BS, targets_BSH = stream(1, 8, 3)
    outputs = []
    for hidden in ("post_norm", "pre_norm"):
        model = build_model(shape(final_norm_gain=False), HeadsShape(3, hidden), seed=0).eval()
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        assert "trunk.norm.weight" not in dict(model.named_parameters())
        outputs.append(torch.stack(model(tokens_BS, targets_BSH)))
    # Not to the last bit: the norm's epsilon is added once more after the norm than before it.
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # from inside torch's own compiler
def test_compiling_keeps_the_names_of_parameters() -> None:
    model = toy_model(1)
    names = list(model.state_dict())
    model.compile_trunk()
    assert list(model.state_dict()) == names


def test_training_flops_are_six_per_parameter_in_a_product_and_attention() -> None:
    """Toy trunk: N = 4, C = 8, two blocks and two heads' blocks, H = 3, V D = 64 * 32."""
    model = toy_model(3)
    products = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    )
    expected = 6 * (products + 3 * 64 * 32 + 4 * 10 * 4 * 8)
    assert model.training_flops_per_token(10) == pytest.approx(expected, rel=0.03)  # norms' gains
