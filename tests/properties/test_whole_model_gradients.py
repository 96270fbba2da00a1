"""The gradient of every parameter, the whole way through model and fused loss, against autograd
over plain logits: what a user would write, and what must never differ."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.toys import stream, toy_model
from wmtp.loss import Workspace, distilled_ce, fused_mtp_loss, weighted_mtp_loss
from wmtp.model.multi_token import MultiTokenModel
from wmtp.step import gradient_of

B, S, H = 4, 10, 3
SCALE = (1.0, 0.3, 0.5)


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, targets, where valid, and weights that differ from token to token."""
    tokens, targets = stream(B, S, H, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    valid = torch.rand(B, S, H, generator=generator) > 0.25
    weights = torch.rand(B, S, H, generator=generator) * 2
    return tokens, targets, valid, weights


def count(valid: Tensor) -> float:
    return float((valid.sum((0, 1)) * torch.tensor(SCALE)).sum())


def fused(
    model: MultiTokenModel,
    tokens: Tensor,
    targets: Tensor,
    valid: Tensor,
    weights: Tensor,
    parts: Sequence[slice] = (slice(0, B),),
    distill: float = 0.0,
) -> dict[str, Tensor]:
    """Gradients as training makes them, over one or more micro-batches."""
    model.zero_grad()
    for part in parts:
        hidden = model(tokens[part], targets[part])
        output = fused_mtp_loss(
            hidden,
            model.unembeddings,
            targets[part],
            valid[part],
            lambda _ce, rows, part=part: weights[part][rows],
            "known",
            valid_count=count(valid),
            head_scale=SCALE,
            unembedding_gradients=[gradient_of(matrix) for matrix in model.unembeddings],
            workspace=Workspace(chunk_rows=16),
            distill=distill,
        )
        if output.loss.requires_grad:  # not where only matrices of linear heads learn
            output.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain(
    model: MultiTokenModel,
    tokens: Tensor,
    targets: Tensor,
    valid: Tensor,
    weights: Tensor,
    distill: float = 0.0,
) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model.logits(tokens, targets)
    ce = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view(B, S, H)
    ce = distilled_ce(logits, ce, distill)
    weighted_mtp_loss(ce, weights, valid, count(valid), torch.tensor(SCALE)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        difference = (found[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-9)
        assert difference < 1e-5, f"{name}: {difference}"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("hidden", ["post_norm", "pre_norm"])
def test_every_gradient_equals_autograd_over_plain_logits(tied: bool, hidden: str) -> None:
    model = toy_model(H, hidden, tie_embeddings=tied)
    assert_same(fused(model, *problem()), plain(model, *problem()))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "free"])
@pytest.mark.parametrize("kind", ["sequential", "linear"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gradients_of_targets_shared_with_the_trunk(tied: bool, kind: str, frozen: bool) -> None:
    """The trunk, which is head 0, gets no gradient as a teacher, whether it is frozen or not."""
    model = toy_model(H, kind=kind, tie_embeddings=tied)
    if frozen:
        model.freeze_trunk()
    expected = plain(model, *problem(), distill=0.5)
    parts = [slice(0, 1), slice(1, 4)]
    assert_same(fused(model, *problem(), parts=parts, distill=0.5), expected)
    if not frozen:  # the labels alone give others
        name = "trunk.embed_tokens.weight"
        other = plain(model, *problem())[name]
        assert (expected[name] - other).norm() > 0.01 * other.norm()


def test_weights_of_one_equal_plain_multi_token_prediction() -> None:
    model = toy_model(H, tie_embeddings=True)
    tokens, targets, valid, _ = problem()
    ones = torch.ones(B, S, H)
    model.zero_grad()
    logits = model.logits(tokens, targets)
    ce = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view(B, S, H)
    per_head = [SCALE[h] * ce[..., h][valid[..., h]].sum() for h in range(H)]
    (torch.stack(per_head).sum() / count(valid)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_same(fused(model, tokens, targets, valid, ones), expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2), (3, 1), (1, 3)], ids=str)
def test_number_and_order_of_micro_batches_do_not_matter(sizes: tuple[int, ...]) -> None:
    """Short and long micro-batches weigh alike: N is that of the whole step."""
    model = toy_model(H, tie_embeddings=True)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    whole = fused(model, *problem())
    assert_same(fused(model, *problem(), parts=parts), whole)
    assert_same(fused(model, *problem(), parts=parts[::-1]), whole)


def test_twice_the_weights_give_twice_the_gradient() -> None:
    model = toy_model(H, tie_embeddings=True)
    tokens, targets, valid, weights = problem()
    once = fused(model, tokens, targets, valid, weights)
    twice = fused(model, tokens, targets, valid, 2 * weights)
    assert_same(twice, {name: 2 * gradient for name, gradient in once.items()})


def test_token_weights_that_are_equal_over_heads_do_change_the_gradient() -> None:
    """Trap (a): dividing each position by its own weight sum would cancel them."""
    model = toy_model(H, tie_embeddings=True)
    tokens, targets, valid, weights = problem()
    by_token = weights[:, :, :1].expand(B, S, H).contiguous()
    ones = fused(model, tokens, targets, valid, torch.ones(B, S, H))
    found = fused(model, tokens, targets, valid, by_token)
    name = "trunk.embed_tokens.weight"
    assert (found[name] - ones[name]).norm() > 0.1 * ones[name].norm()
    assert_same(found, plain(model, tokens, targets, valid, by_token))


def test_a_perfect_reference_scores_zero_when_it_is_read_with_the_same_shift() -> None:
    """Trap (b): a reference that is the model itself has no excess at head 0."""
    from wmtp.data.batches import Batch
    from wmtp.data.reference import Reference
    from wmtp.loss import measure_ce
    from wmtp.runtime.device import choose_device

    model = toy_model(H).requires_grad_(False)
    tokens, targets, _, _ = problem()
    valid = torch.ones(B, S, H, dtype=torch.bool)
    batch = Batch(tokens, targets, valid, None, None, None, (B * S,) * H, tuple(range(B)))
    device = choose_device("cpu", "fp32")
    reference_ce = Reference(model, device, Workspace()).target_ce(batch)
    hidden = model(tokens, targets)
    ce, _ = measure_ce(hidden, model.unembeddings, targets, valid)
    torch.testing.assert_close(reference_ce[..., 0], ce[..., 0], atol=1e-5, rtol=1e-5)
    # one number per token, whatever head aims at it
    torch.testing.assert_close(reference_ce[:, 1:, 0], reference_ce[:, :-1, 1])
