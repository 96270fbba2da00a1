"""The one-pass loss against plain float64 autograd: every schedule, every gradient."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.loss.problems import (
    LIMITS,
    SCHEDULES,
    Problem,
    Schedule,
    check_against_float64,
    every_schedule,
    fresh_gradients,
    known_dense,
    make_problem,
    plain_ce,
    run,
)
from wmtp.loss import Workspace, fused_mtp_loss


@every_schedule
def test_loss_and_every_gradient_agree_with_float64(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    result = run(problem, schedule)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(
    "schedule", [s for s in SCHEDULES if "fixed" not in s.name and "frozen" not in s.name], ids=str
)
def test_gradients_stay_within_the_limits_at_realistic_width(
    schedule: Schedule, dtype: torch.dtype
) -> None:
    # heads with matrices of their own need more rows: a product of a few rows alone, as the BLAS
    # does it, sums the vocabulary with an error of 1e-6
    S, chunk_rows = (24, 64) if schedule.matrix_of_head == (0,) else (64, 256)
    problem = make_problem(schedule, B=2, S=S, D=256, V=4096, dtype=dtype)
    result = run(problem, schedule, chunk_rows=chunk_rows)
    check_against_float64(problem, schedule, result, LIMITS[dtype])


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not s.frozen_heads], ids=str)
def test_16_bit_products_stay_within_the_limit_of_bf16(schedule: Schedule) -> None:
    """As on CUDA: bf16 logits and products, float32 softmax, sums, weights and accumulators."""
    problem = make_problem(schedule, B=2, S=48, D=256, V=4096, dtype=torch.bfloat16)
    workspace = schedule.workspace(problem, 128, product_dtype=torch.bfloat16)
    result = run(problem, schedule, workspace=workspace)
    # logits up to 10 are off by up to 2^-6 once rounded; a head in which a few targets have most
    # of the weight is off by what happened to those, so all gradients are taken together
    check_against_float64(
        problem, schedule, result, LIMITS[torch.bfloat16], ce_tolerance=2e-2, together=True
    )
    assert result.output.ce_BSH.dtype == torch.float32


def test_16_bit_products_of_float32_parameters_need_no_tiny_numbers() -> None:
    """fp16 holds nothing below 6e-8: a factor of 1 / N must stay out of its products."""
    problem = make_problem(B=2, S=24, D=64, V=1000)
    workspace = SCHEDULES[0].workspace(problem, 64, product_dtype=torch.float16)
    result = run(problem, SCHEDULES[0], workspace=workspace, valid_count=1e9)
    wanted = run(problem, SCHEDULES[0], valid_count=1e9)
    for found, true in zip(
        [*result.hidden_gradients, *result.W_gradients],
        [*wanted.hidden_gradients, *wanted.W_gradients],
        strict=True,
    ):
        assert (found - true).norm() < 1e-3 * true.norm()  # fp16 rounds by up to 2^-11 = 5e-4


@every_schedule
def test_head_scale_and_loss_scale_reach_the_gradients(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    head_scale, loss_scale = [1.0, 0.3, 0.5, 2.0], 1024.0
    result = run(problem, schedule, head_scale=head_scale, loss_scale=loss_scale)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], head_scale, loss_scale)


@every_schedule
def test_chunk_size_does_not_matter(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    for chunk_rows in (1, 5, 1000):
        result = run(problem, schedule, chunk_rows=chunk_rows)
        check_against_float64(problem, schedule, result, LIMITS[torch.float32])


def test_weights_of_each_schedule_are_those_of_all_cross_entropies_at_once() -> None:
    """Chunks hand a weighting the same numbers, so it must not matter how many it sees."""
    problem = make_problem()
    for schedule in SCHEDULES:
        if schedule.frozen_heads:
            continue
        problem = make_problem(schedule)
        ce_BSH = plain_ce(problem.hidden_HBSD, problem.matrices, problem).detach()
        B, S, H = ce_BSH.shape
        weigh = schedule.weighting(problem)
        if schedule.scope == "token":
            wanted = weigh(ce_BSH.view(1, -1, H), slice(0, B * S)).view(B, S, H)
        else:
            wanted = weigh(ce_BSH, slice(0, B))
        found = run(problem, schedule).output.weights_BSH
        torch.testing.assert_close(found, torch.where(problem.valid_BSH, wanted, 0).float())


@every_schedule
def test_ignored_targets_may_hold_anything(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    before = run(problem, schedule)
    problem.targets_BSH[~problem.valid_BSH] = 10**12
    after = run(problem, schedule)
    assert torch.equal(before.output.loss, after.output.loss)
    for x, y in zip(before.hidden_gradients, after.hidden_gradients, strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


@every_schedule
def test_invalid_positions_get_no_gradient_even_if_their_hidden_state_is_not_finite(
    schedule: Schedule,
) -> None:
    problem = make_problem(schedule)
    unused_BSH = ~problem.valid_BSH
    with torch.no_grad():
        for h, x in enumerate(problem.hidden_HBSD):
            x[unused_BSH[:, :, h]] = torch.nan
    result = run(problem, schedule)
    assert result.output.loss.isfinite()
    assert all(g is None or g.isfinite().all() for g in result.W_gradients)
    for h, gradient in enumerate(result.hidden_gradients):
        assert gradient is None or not gradient[unused_BSH[:, :, h]].any()


@every_schedule
@pytest.mark.parametrize("loss_scale", [1.0, 65536.0])
def test_nothing_valid_gives_zero_loss_and_zero_gradients(
    schedule: Schedule, loss_scale: float
) -> None:
    problem = make_problem(schedule)
    problem.valid_BSH[:] = False
    result = run(problem, schedule, valid_count=0, loss_scale=loss_scale)
    assert result.output.loss == 0
    assert not result.output.measured_BSH.any()
    for gradient in [*result.hidden_gradients, *result.W_gradients]:
        assert gradient is None or torch.equal(gradient, torch.zeros_like(gradient))


@every_schedule
def test_a_row_without_targets_changes_nothing(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    problem.valid_BSH[1] = False
    result = run(problem, schedule)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32])


# properties --------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1::2], ids=str)
def test_micro_batches_in_any_order_add_up_to_one_batch(
    schedule: Schedule, order: tuple[int, ...]
) -> None:
    problem = make_problem(schedule)
    whole = run(problem, schedule)
    into = fresh_gradients(problem, schedule)
    losses = []
    for b in order:
        part = run(
            problem.rows(slice(b, b + 1)), schedule, into=into, valid_count=problem.valid_count
        )
        losses.append(part.output.loss)
        for found, wanted in zip(part.hidden_gradients, whole.hidden_gradients, strict=True):
            if wanted is not None:
                torch.testing.assert_close(found, wanted[b : b + 1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(sum(losses), whole.output.loss)
    for total, wanted in zip(into, whole.W_gradients, strict=True):
        torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-7)


def test_gradient_is_added_to_what_the_accumulator_holds() -> None:
    problem = make_problem()
    schedule = SCHEDULES[0]
    once = run(problem, schedule).W_gradient
    twice = run(problem, schedule, into=[once.clone()]).W_gradient
    torch.testing.assert_close(twice, 2 * once)


def test_twice_the_weights_give_twice_the_loss_and_gradient() -> None:
    problem = make_problem()
    single = Schedule("w", "known", known_dense)
    double = Schedule("2w", "known", lambda p: lambda ce, part: 2 * known_dense(p)(ce, part))
    one, two = run(problem, single), run(problem, double)
    assert torch.equal(two.output.loss, 2 * one.output.loss)
    assert torch.equal(two.W_gradient, 2 * one.W_gradient)
    for x, y in zip(one.hidden_gradients, two.hidden_gradients, strict=True):
        assert torch.equal(y, 2 * x)


def test_trap_a_loss_is_not_divided_by_its_own_weight_sum() -> None:
    """A token whose heads all weigh 3 must pull three times as hard as one whose heads weigh 1."""
    problem = make_problem(B=1)
    token_weight_BSH = torch.ones(problem.valid_BSH.shape)
    token_weight_BSH[:, 3] = 3.0
    plain = run(
        problem, Schedule("1", "known", lambda p: lambda ce, part: torch.ones_like(p.signal_BSH))
    )
    heavy = run(problem, Schedule("3", "known", lambda p: lambda ce, part: token_weight_BSH))
    for h in range(4):
        before, after = plain.hidden_gradients[h], heavy.hidden_gradients[h]
        assert before is not None
        assert after is not None
        torch.testing.assert_close(after[:, 3], 3 * before[:, 3])
        torch.testing.assert_close(after[:, 4:], before[:, 4:])
    extra = 2 * plain.output.ce_BSH[:, 3].sum() / problem.valid_count
    torch.testing.assert_close(heavy.output.loss, plain.output.loss + extra)


def test_weights_of_one_are_the_mean_cross_entropy() -> None:
    problem = make_problem()
    ones = Schedule("1", "known", lambda p: lambda ce, part: torch.ones_like(p.signal_BSH))
    ce_BSH = plain_ce(problem.hidden_HBSD, problem.matrices, problem)
    torch.testing.assert_close(run(problem, ones).output.loss, ce_BSH[problem.valid_BSH].mean())


def test_weights_carry_no_gradient() -> None:
    problem = make_problem()
    strength = torch.tensor(1.5, requires_grad=True)
    schedule = Schedule("x", "known", lambda p: lambda ce, part: strength * p.signal_BSH)
    run(problem, schedule)
    assert strength.grad is None


# refusals ----------------------------------------------------------------------------------------


def unsent(problem: Problem, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "hidden_HBSD": problem.hidden_HBSD,
        "unembeddings": problem.unembeddings,
        "targets_BSH": problem.targets_BSH,
        "valid_BSH": problem.valid_BSH,
        "weigh": known_dense(problem),
        "scope": "known",
        "valid_count": problem.valid_count,
    }
    return fused_mtp_loss(**(arguments | changes)).loss


def test_backward_with_a_gradient_other_than_one_is_refused() -> None:
    with pytest.raises(RuntimeError, match="use loss_scale and valid_count"):
        (unsent(make_problem()) * 0.5).backward()


def test_second_backward_is_refused() -> None:
    loss = unsent(make_problem())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already sent backward"):
        loss.backward()


def test_loss_may_be_added_to_others() -> None:
    problem = make_problem()
    other = torch.tensor(2.0, requires_grad=True)
    (unsent(problem) + other**2).backward()
    assert other.grad == 4
    assert problem.hidden_HBSD[0].grad is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid_BSH": torch.ones(3, 7, 3).bool()}, "differ"),
        ({"targets_BSH": torch.zeros(3, 7, 3, dtype=torch.int64)}, "need 3 hidden states"),
        ({"head_scale": [1.0, 2.0]}, "head_scale must be 4 factors"),
        ({"head_scale": [1.0, 1.0, 1.0, -1.0]}, "at least 0"),
        ({"hidden_HBSD": [torch.zeros(3, 7, 16)] * 4}, "use measure_ce"),
        ({"unembedding_gradients": [torch.zeros(50, 17)]}, "must be torch.float32"),
        ({"unembedding_gradients": [torch.zeros(50, 16).half()]}, "not torch.float16"),
        ({"weigh": lambda ce, part: torch.ones(5)}, r"returned \(5,\) for 84 targets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unsent(make_problem(), **changes)


def test_workspace_refuses_sizes_below_one() -> None:
    with pytest.raises(ValueError, match="chunk_rows=0"):
        Workspace(chunk_rows=0)
