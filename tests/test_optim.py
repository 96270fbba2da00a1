import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.model.toys import toy_model
from wmtp.optim import (
    OptimizerName,
    build_optimizers,
    clip_gradients,
    head_scale_at,
    hidden_matrices,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
    step_optimizers,
)

NAMES: tuple[OptimizerName, ...] = ("adamw", "muon")
YES, NO = torch.tensor(True), torch.tensor(False)


class Toy(nn.Module):
    """One parameter for each way to be moved; every gradient is given by hand."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed_tokens = nn.Embedding(10, 4)
        self.up_proj = nn.Linear(4, 6, bias=False)
        self.norm = nn.RMSNorm(4)
        self.value_head = nn.Linear(4, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)
            self.up_proj.weight[0] = 0.0  # what is zero must stay so too


def built(
    model: nn.Module, name: OptimizerName, value_lr: float | None = None, fused: bool = True
) -> tuple[torch.optim.Optimizer, ...]:
    return build_optimizers(
        model.named_parameters(),
        name=name,
        lr=0.1,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.5,
        fused=fused,
        value_lr=value_lr,
    )


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def everything(
    model: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]
) -> dict[str, Tensor]:
    tensors = {**model.state_dict(), **optimizer_tensors(optimizers, model.named_parameters())}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


# which parameter moves by which rule --------------------------------------------------------------


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in moved}


def test_muon_moves_the_matrices_inside_blocks_and_adamw_the_rest() -> None:
    model = toy_model(horizon=2)
    muon, adamw = built(model, "muon")
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    attention = [f"self_attn.{letter}_proj.weight" for letter in "qkvo"]
    mlp = [f"mlp.{word}_proj.weight" for word in ("gate", "up", "down")]
    blocks = ("trunk.layers.0", "trunk.layers.1", "heads.depths.0.block")
    expected = {f"{block}.{name}" for block in blocks for name in attention + mlp}
    assert names_of(model, muon) == expected | {"heads.depths.0.eh_proj.weight"}
    assert names_of(model, adamw) == dict(model.named_parameters()).keys() - names_of(model, muon)


def test_a_table_is_known_by_its_name_or_by_its_shape() -> None:
    shapes = {
        "trunk.transformer.wte.weight": (50, 8),
        "trunk.transformer.wpe.weight": (16, 8),
        "trunk.transformer.h.0.attn.c_attn.weight": (8, 24),
        "trunk.transformer.h.0.mlp.c_fc.weight": (16, 8),  # as many rows as there are positions
        "trunk.gpt_neox.embed_in.weight": (50, 8),
        "trunk.embed_out.weight": (50, 8),
        "heads.matrices.0": (50, 8),
        "heads.depths.0.eh_proj.weight": (8, 16),
        "value_head.inner.weight": (8, 8),
        "trunk.transformer.h.0.ln_1.weight": (8,),
        "trunk.conv.weight": (8, 8, 3),
    }
    named = [(name, nn.Parameter(torch.zeros(size))) for name, size in shapes.items()]
    assert hidden_matrices(named) == {
        "trunk.transformer.h.0.attn.c_attn.weight",
        "trunk.transformer.h.0.mlp.c_fc.weight",
        "heads.depths.0.eh_proj.weight",
    }


def test_a_frozen_embedding_still_tells_the_shape_of_tables() -> None:
    embedding = nn.Parameter(torch.zeros(50, 8), requires_grad=False)
    matrix = nn.Parameter(torch.zeros(50, 8))
    (only,) = build_optimizers(
        [("embed_tokens.weight", embedding), ("heads.matrices.0", matrix)],
        name="muon", lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True,
    )  # fmt: skip
    assert isinstance(only, torch.optim.AdamW)
    assert only.param_groups[0]["params"] == [matrix]


def test_vectors_do_not_decay() -> None:
    model = Toy()
    (adamw,) = built(model, "adamw")
    decays = {
        name: group["weight_decay"]
        for group in adamw.param_groups
        for name, p in model.named_parameters()
        if any(p is other for other in group["params"])
    }
    assert decays == {
        "embed_tokens.weight": 0.5,
        "up_proj.weight": 0.5,
        "norm.weight": 0.0,
        "value_head.weight": 0.5,
        "value_head.bias": 0.0,
    }


def test_a_model_that_is_all_frozen_has_no_optimizer() -> None:
    with pytest.raises(ValueError, match="nothing to optimize"):
        built(Toy().requires_grad_(False), "muon")


# how far a step goes ------------------------------------------------------------------------------


def test_muon_moves_a_matrix_as_far_as_adamw_would() -> None:
    """0.2 times lr, root mean square, which is about what AdamW's steps have.

    An orthogonal [32, 8] matrix has 8 singular values of 1, so a root mean square of
    sqrt(8 / 256) = 1 / sqrt(32), times 0.2 * sqrt(32). Newton and Schulz's five steps leave each
    singular value between 0.7 and 1.2, and bfloat16 adds 1 %.
    """
    matrix = nn.Parameter(torch.zeros(32, 8))
    optimizers = build_optimizers(
        [("mlp.up_proj.weight", matrix)],
        name="muon", lr=0.5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True,
    )  # fmt: skip
    matrix.grad = 1e-4 * torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    step_optimizers(optimizers, NO)
    far = matrix.detach().square().mean().sqrt().item()
    assert 0.68 * 0.2 * 0.5 < far < 1.22 * 0.2 * 0.5


def test_muon_does_not_carry_on_a_matrix_whose_gradient_has_come_to_0() -> None:
    """Nor does it forget the momentum of the others, or of one that is held back."""
    model = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
    optimizers = build_optimizers(
        model.named_parameters(),
        name="muon", lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True,
    )  # fmt: skip
    give_gradients(model, 0)
    step_optimizers(optimizers, NO)
    start = everything(model, optimizers)
    for flag, moved in ((YES, False), (NO, True)):
        model[0].weight.grad = torch.zeros(4, 4)
        model[1].weight.grad = torch.ones(4, 4)
        step_optimizers(optimizers, flag)
        after = everything(model, optimizers)
        assert torch.equal(after["0.weight"], start["0.weight"])
        assert torch.equal(after["1.weight"], start["1.weight"]) != moved
        assert bool(after["0.weight.momentum_buffer"].any()) != moved
        kept = start["1.weight.momentum_buffer"]
        expected = 0.95 * kept + 0.05 if moved else kept
        torch.testing.assert_close(after["1.weight.momentum_buffer"], expected)


def test_muon_decays_a_matrix_by_the_plain_rate() -> None:
    matrix = nn.Parameter(torch.full((2, 2), 3.0))
    optimizers = build_optimizers(
        [("mlp.up_proj.weight", matrix)],
        name="muon", lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5, fused=True,
    )  # fmt: skip
    set_learning_rate(optimizers, 0.2)
    matrix.grad = torch.zeros(2, 2)
    step_optimizers(optimizers, NO)
    # 3 * (1 - 0.2 * 0.5), which float32 cannot hold exactly
    assert matrix.detach() == pytest.approx(torch.full((2, 2), 2.7), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_that_is_down_changes_nothing(name: OptimizerName) -> None:
    plain, flagged = Toy(), Toy()
    for model, flag in ((plain, None), (flagged, NO)):
        optimizers = built(model, name)
        for step in range(3):
            give_gradients(model, step)
            step_optimizers(optimizers, flag)
    # Muon's decay is a number of 64 bits here and a tensor of 32 there: one rounding a step
    for ours, torchs in zip(flagged.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=5e-7, atol=1e-7)
    assert not torch.equal(flagged.up_proj.weight, Toy().up_proj.weight)


def test_the_value_head_learns_at_a_rate_of_its_own_through_the_schedule() -> None:
    optimizers = built(Toy(), "muon", value_lr=0.02)
    for step in range(6):
        rate = learning_rate(step, peak=0.1, scheduler="wsd", warmup_steps=2, max_steps=6)
        set_learning_rate(optimizers, rate)
        rates = [group["lr"] for o in optimizers for group in o.param_groups]
        # Muon's, AdamW's matrices and vectors, the value head's: 0.02 / 0.1 = a fifth of the rest
        assert rates == pytest.approx([rate, rate, rate, rate / 5, rate / 5], rel=1e-15)
    assert learning_rate(0, peak=0.02, scheduler="cosine", warmup_steps=2, max_steps=6) == 0.01


# holding back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_moves_nothing(
    name: OptimizerName, before: int, bad: float
) -> None:
    """Neither as the first step of all nor after others, and the one after is as without it."""
    model, undisturbed = Toy(), Toy()
    optimizers, others = built(model, name), built(undisturbed, name)
    for step in range(before):
        for each, moved_by in ((model, optimizers), (undisturbed, others)):
            give_gradients(each, step)
            step_optimizers(moved_by, NO)
    start = bits(everything(model, optimizers))
    give_gradients(model, 98)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = bad
    norm = clip_gradients(list(model.parameters()), 1.0)
    step_optimizers(optimizers, ~norm.isfinite())
    after = bits(everything(model, optimizers))
    assert {name: after[name] for name in start} == start

    for each, moved_by in ((model, optimizers), (undisturbed, others)):
        give_gradients(each, 99)
        step_optimizers(moved_by, NO)
    assert bits(everything(model, optimizers)) == bits(everything(undisturbed, others))


@pytest.mark.parametrize("name", NAMES)
def test_good_gradients_are_held_back_together_with_a_bad_one(name: OptimizerName) -> None:
    """One bad number anywhere: also the optimizer whose own gradients are good stands still."""
    model = Toy()
    optimizers = built(model, name)
    give_gradients(model, 0)
    step_optimizers(optimizers, NO)
    start = bits(everything(model, optimizers))
    give_gradients(model, 1)
    step_optimizers(optimizers, YES)
    assert bits(everything(model, optimizers)) == start


@pytest.mark.parametrize("name", NAMES)
def test_a_step_never_waits_for_the_flag(name: OptimizerName) -> None:
    """A fake tensor has no number to give away: reading one on the host raises."""
    with FakeTensorMode():
        model = nn.Linear(4, 6)
        optimizers = built(model, name)
        flag = torch.zeros(()).isfinite()
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            step_optimizers(optimizers, flag)
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            flag.item()


def test_the_loss_scaler_of_fp16_needs_no_step_of_its_own() -> None:
    """One overflow anywhere holds all optimizers back and halves the scale."""
    model = Toy()
    optimizers = built(model, "muon")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    for bad, scale in ((False, 8.0), (True, 4.0), (False, 4.0)):
        give_gradients(model, 0)
        if bad:
            assert model.norm.weight.grad is not None
            model.norm.weight.grad[0] = math.inf
        start = bits(everything(model, optimizers))
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = clip_gradients(list(model.parameters()), 1.0)
        step_optimizers(optimizers, ~norm.isfinite())
        scaler.update()
        assert (bits(everything(model, optimizers)) == start) == bad
        assert scaler.get_scale() == scale


def test_only_a_fused_adamw_can_be_held_back() -> None:
    model = Toy()
    give_gradients(model, 0)
    with pytest.raises(ValueError, match="AdamW holds no update back"):
        step_optimizers(built(model, "adamw", fused=False), NO)


# going on from a checkpoint -----------------------------------------------------------------------


def steps(model: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...], which: range) -> None:
    for step in which:
        set_learning_rate(optimizers, 0.1 / (step + 1))
        give_gradients(model, step)
        step_optimizers(optimizers, NO)


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_a_checkpoint_and_three_more_are_six(name: OptimizerName) -> None:
    whole = Toy()
    optimizers_of_whole = built(whole, name, value_lr=0.03)
    steps(whole, optimizers_of_whole, range(6))

    first = Toy()
    optimizers = built(first, name, value_lr=0.03)
    steps(first, optimizers, range(3))
    saved = {
        name: tensor.clone()
        for name, tensor in optimizer_tensors(optimizers, first.named_parameters()).items()
    }
    second = Toy(seed=1)
    second.load_state_dict(first.state_dict())
    optimizers = built(second, name, value_lr=0.03)
    load_optimizer_tensors(optimizers, second.named_parameters(), saved)
    steps(second, optimizers, range(3, 6))
    assert bits(everything(second, optimizers)) == bits(everything(whole, optimizers_of_whole))


@pytest.mark.parametrize(("wrote", "reads"), [NAMES, NAMES[::-1]])
def test_the_state_of_the_other_optimizer_is_refused(
    wrote: OptimizerName, reads: OptimizerName
) -> None:
    model = Toy()
    optimizers = built(model, wrote)
    steps(model, optimizers, range(1))
    tensors = optimizer_tensors(optimizers, model.named_parameters())
    fresh = Toy()
    with pytest.raises(KeyError, match="up_proj.weight"):
        load_optimizer_tensors(built(fresh, reads), fresh.named_parameters(), tensors)


def test_a_state_too_few_or_too_many_is_refused() -> None:
    model = Toy()
    optimizers = built(model, "adamw")
    steps(model, optimizers, range(1))
    tensors = optimizer_tensors(optimizers, model.named_parameters())
    fresh = Toy()
    less = {name: t for name, t in tensors.items() if name != "norm.weight.exp_avg"}
    with pytest.raises(KeyError, match="norm.weight.exp_avg"):
        load_optimizer_tensors(built(fresh, "adamw"), fresh.named_parameters(), less)
    fresh.norm.requires_grad_(False)
    with pytest.raises(KeyError, match="norm.weight"):
        load_optimizer_tensors(built(fresh, "adamw"), fresh.named_parameters(), tensors)


def test_before_the_first_update_there_is_no_state_to_load() -> None:
    model = Toy()
    optimizers = built(model, "muon")
    assert optimizer_tensors(optimizers, model.named_parameters()) == {}
    load_optimizer_tensors(optimizers, model.named_parameters(), {})
    assert optimizer_tensors(optimizers, model.named_parameters()) == {}


# the factors of the heads -------------------------------------------------------------------------


def test_head_scale_goes_from_its_start_to_its_end_in_a_straight_line() -> None:
    start, end = (1.0, 0.3, 0.3), (1.0, 0.0, 0.1)
    scales = [
        head_scale_at(step, start=start, end=end, begin_step=4, end_step=8) for step in range(10)
    ]
    assert scales[:5] == [start] * 5
    assert scales[5] == pytest.approx((1.0, 0.225, 0.25))
    assert scales[7] == pytest.approx((1.0, 0.075, 0.15))
    assert scales[8:] == [end] * 2
    assert head_scale_at(3, start=start, end=end, begin_step=3, end_step=3) == end
    assert head_scale_at(99, start=start, end=None, begin_step=0, end_step=0) == start


def test_head_scale_refuses_ends_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="as many factors"):
        head_scale_at(0, start=(1.0, 0.3), end=(1.0,), begin_step=0, end_step=1)
    with pytest.raises(ValueError, match="not before the beginning"):
        head_scale_at(0, start=(1.0,), end=(1.0,), begin_step=2, end_step=1)
