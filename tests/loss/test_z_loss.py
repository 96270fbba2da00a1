"""A price on logits whose exponentials do not sum to 1, against float64 and by hand."""

import pytest
import torch

from tests.loss.problems import (
    LIMITS,
    SCHEDULES,
    Schedule,
    check_against_float64,
    every_schedule,
    fresh_gradients,
    make_problem,
    run,
)
from tests.loss.test_work_and_memory import ByteCounter
from wmtp.loss import fused_mtp_loss

ONE_OF_EACH = ("known with zeros", "token", "sequence, most of a row held", "own, token")
K = 0.05
SMALL = 1e-4


@every_schedule
def test_loss_and_every_gradient_agree_with_float64(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    result = run(problem, schedule, z_loss=K)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], z_loss=K)


def test_the_comparison_notices_a_price_that_is_left_out_or_doubled() -> None:
    schedule = SCHEDULES[0]
    problem = make_problem(schedule)
    for used in (0.0, 2 * K):
        result = run(problem, schedule, z_loss=used)
        with pytest.raises(AssertionError):
            check_against_float64(problem, schedule, result, LIMITS[torch.float32], z_loss=K)


@pytest.mark.parametrize(
    "schedule", [s for s in SCHEDULES if s.name.split(", fixed")[0] in ONE_OF_EACH], ids=str
)
def test_16_bit_products_stay_within_the_limit_of_bf16(schedule: Schedule) -> None:
    """``2 k z`` is a tenth: beyond that the roundings that there always are count for more."""
    problem = make_problem(schedule, B=1, S=48, D=256, V=4096, dtype=torch.bfloat16)
    workspace = schedule.workspace(problem, 128, product_dtype=torch.bfloat16)
    result = run(problem, schedule, workspace=workspace, z_loss=K / 10)
    check_against_float64(
        problem, schedule, result, LIMITS[torch.bfloat16], ce_tolerance=2e-2, together=True,
        z_loss=K / 10,
    )  # fmt: skip


def test_16_bit_logits_do_not_swallow_a_small_price() -> None:
    """``2 k z`` is 2e-3 here: less than half of what bf16 tells apart near 1.

    What the price adds to the gradients is compared, not the gradients, of which it is little.
    """
    schedule = next(s for s in SCHEDULES if s.name == "known with zeros")
    found = []
    for product_dtype in (torch.bfloat16, None):
        of_k = []
        for k in (SMALL, 0.0):
            problem = make_problem(schedule, B=1, S=48, D=64, V=4096)
            workspace = schedule.workspace(problem, 128, product_dtype=product_dtype)
            gradients = run(problem, schedule, workspace=workspace, z_loss=k).hidden_gradients
            of_k.append(torch.cat([g.flatten() for g in gradients if g is not None]))
        found.append(of_k[0] - of_k[1])
    narrow, wide = found
    assert float((narrow - wide).norm() / wide.norm()) < 0.1


def test_one_target_worked_by_hand() -> None:
    """Logits (0, 0), target 0, k = 1/2: z = log 2, d = log 2 + (log 2)^2 / 2 = 0.9334.

    The gradient by the logits is ``(1 + 2 k z) (1/2, 1/2) - (1, 0)`` = (-0.1534, 0.8466), and so is
    that by the hidden state, as the unembedding is the identity.
    """
    x = torch.zeros(1, 1, 2, requires_grad=True)
    output = fused_mtp_loss(
        [x], [torch.eye(2)], torch.zeros(1, 1, 1, dtype=torch.int64),
        torch.ones(1, 1, 1, dtype=torch.bool), lambda ce, part: torch.ones(1, 1, 1), "known",
        valid_count=1, z_loss=0.5,
    )  # fmt: skip
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert output.loss.item() == pytest.approx(0.9334, abs=1e-4)
    assert output.ce_BSH.item() == pytest.approx(0.6931, abs=1e-4)
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([-0.1534, 0.8466], abs=1e-4)


def test_without_a_price_nothing_differs_by_a_bit() -> None:
    schedule = SCHEDULES[0]
    plain, priced = (run(make_problem(schedule), schedule, **o) for o in ({}, {"z_loss": 0.0}))
    assert torch.equal(plain.output.loss, priced.output.loss)
    assert plain.W_gradient is not None
    assert priced.W_gradient is not None
    assert torch.equal(plain.W_gradient, priced.W_gradient)


def test_a_price_takes_no_memory_for_logits() -> None:
    """A few numbers for each target and rows of width D, never ``[rows, V]``."""
    schedule = next(s for s in SCHEDULES if s.name == "known with zeros")
    S, D, V, chunk_rows = 64, 8, 4096, 64
    peaks = []
    for k in (0.0, K):
        problem = make_problem(schedule, B=1, S=S, D=D, V=V)
        workspace = schedule.workspace(problem, chunk_rows)
        into = fresh_gradients(problem, schedule)
        run(problem, schedule, workspace=workspace, into=into, z_loss=k)
        inputs = [*problem.hidden_HBSD, *problem.matrices, *(g for g in into if g is not None)]
        with ByteCounter(inputs) as counter:
            run(problem, schedule, workspace=workspace, into=into, z_loss=k)
        peaks.append(counter.peak)
    assert peaks[0] > 0
    few = 4 * (8 * 4 * S + 8 * chunk_rows * D)
    assert few < 4 * chunk_rows * V / 10
    assert peaks[1] - peaks[0] < few


@pytest.mark.parametrize(("z_loss", "distill"), [(-1.0, 0.0), (0.1, 0.5)])
def test_what_does_not_fit_is_refused(z_loss: float, distill: float) -> None:
    schedule = SCHEDULES[0]
    with pytest.raises(ValueError, match="z_loss is"):
        run(make_problem(schedule), schedule, z_loss=z_loss, distill=distill)
