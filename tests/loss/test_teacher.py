"""Targets that the trunk's own distribution has a share in, against float64 and by hand."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.loss.problems import (
    LIMITS,
    SCHEDULES,
    Problem,
    Result,
    Schedule,
    check_against_float64,
    every_schedule,
    fresh_gradients,
    known_dense,
    make_problem,
    plain_logits,
    run,
)
from tests.loss.test_work_and_memory import ByteCounter, WaitDetector
from wmtp.loss import Workspace, distilled_ce

UNFROZEN = [s for s in SCHEDULES if not s.frozen_heads]
ONE_OF_EACH = (  # large problems take their time
    "known with zeros",
    "token",
    "sequence, most of a row held",
    "own, token",
    "own, sequence, most held",
)
SHARED = [s for s in SCHEDULES if s.matrix_of_head == (0,)]


@every_schedule
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_loss_and_every_gradient_agree_with_float64(schedule: Schedule, share: float) -> None:
    problem = make_problem(schedule)
    result = run(problem, schedule, distill=share)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=share)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s.name in ONE_OF_EACH], ids=str)
def test_gradients_stay_within_the_limits_at_realistic_width(
    schedule: Schedule, dtype: torch.dtype
) -> None:
    S, chunk_rows = (24, 64) if schedule.matrix_of_head == (0,) else (64, 256)
    problem = make_problem(schedule, B=1, S=S, D=256, V=4096, dtype=dtype)
    result = run(problem, schedule, chunk_rows=chunk_rows, distill=0.5)
    check_against_float64(problem, schedule, result, LIMITS[dtype], distill=0.5)


@pytest.mark.parametrize(
    "schedule", [s for s in SCHEDULES if s.name.split(", fixed")[0] in ONE_OF_EACH], ids=str
)
def test_16_bit_products_stay_within_the_limit_of_bf16(schedule: Schedule) -> None:
    problem = make_problem(schedule, B=1, S=48, D=256, V=4096, dtype=torch.bfloat16)
    workspace = schedule.workspace(problem, 128, product_dtype=torch.bfloat16)
    result = run(problem, schedule, workspace=workspace, distill=0.5)
    # 3e-3 without a teacher (test_fused.py), whose softmax is rounded too; a CPU also rounds each
    # product of 16-bit numbers
    check_against_float64(
        problem,
        schedule,
        result,
        3.5e-3,
        ce_tolerance=2e-2,
        together=True,
        distill=0.5,
    )


@every_schedule
def test_head_scale_and_loss_scale_reach_the_gradients(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    scales: dict[str, Any] = {"head_scale": [1.0, 0.3, 0.0, 2.0], "loss_scale": 1024.0}
    result = run(problem, schedule, distill=0.7, **scales)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=0.7, **scales)


@every_schedule
def test_chunk_size_does_not_matter(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    for chunk_rows in (1, 2, 5, 1000):
        result = run(problem, schedule, chunk_rows=chunk_rows, distill=0.4)
        check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=0.4)


@every_schedule
def test_a_teacher_speaks_where_its_own_target_is_not_valid(schedule: Schedule) -> None:
    """Its label does not matter to a head that reads its distribution."""
    problem = make_problem(schedule)
    problem.valid_BSH[1, 2:5, 0] = False
    result = run(problem, schedule, distill=0.6)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=0.6)


@every_schedule
def test_states_that_no_target_needs_may_be_no_numbers(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    unused_BSH = ~problem.valid_BSH
    with torch.no_grad():
        for h, x in enumerate(problem.hidden_HBSD):
            x[unused_BSH[:, :, h]] = torch.nan
    result = run(problem, schedule, distill=0.5)
    assert result.output.loss.isfinite()
    assert all(g is None or g.isfinite().all() for g in result.W_gradients)
    for gradient in result.hidden_gradients:
        assert gradient is None or gradient.isfinite().all()


@every_schedule
def test_student_and_teacher_share_a_tight_limit(schedule: Schedule) -> None:
    """Three rows of logits are all there is."""
    problem = make_problem(schedule)
    workspace = Workspace(3 * 50 * 4, 16, exact_counts=schedule.exact_counts)
    result = run(problem, schedule, workspace=workspace, distill=0.5)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=0.5)


# properties --------------------------------------------------------------------------------------


def same(one: Result, two: Result) -> bool:
    pairs = zip(
        [one.output.loss, one.output.ce_BSH, *one.hidden_gradients, *one.W_gradients],
        [two.output.loss, two.output.ce_BSH, *two.hidden_gradients, *two.W_gradients],
        strict=True,
    )
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


@every_schedule
def test_no_share_is_the_loss_without_a_teacher_to_the_last_bit(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    with Products() as without:
        plain = run(problem, schedule)
    with Products() as with_none:
        none = run(problem, schedule, distill=0.0)
    assert same(plain, none)
    assert with_none.rows == without.rows


@pytest.mark.parametrize("schedule", SHARED, ids=str)
def test_a_head_that_says_what_the_trunk_says_learns_nothing(schedule: Schedule) -> None:
    """At ``a = 1`` and with logits equal to those of head 0 at ``s + h``, the gradient is 0."""
    problem = make_problem(schedule)
    trunk_BSD = problem.hidden_HBSD[0].detach()
    for h in range(1, 4):
        copied_BSD = torch.randn_like(trunk_BSD)
        copied_BSD[:, : 7 - h] = trunk_BSD[:, h:]
        problem.hidden_HBSD[h] = copied_BSD.requires_grad_()
    taught = run(problem, schedule, distill=1.0)
    alone = run(problem, schedule)
    torch.testing.assert_close(taught.output.ce_BSH, alone.output.ce_BSH)
    for h in range(1, 4):
        found, label = taught.hidden_gradients[h], alone.hidden_gradients[h]
        assert found is not None
        assert label is not None
        assert found.norm() < 1e-6 * label.norm()  # q - p, each rounded


@every_schedule
def test_trunk_and_cross_entropy_do_not_feel_the_heads_targets(schedule: Schedule) -> None:
    problem = make_problem(schedule)
    taught, alone = run(problem, schedule, distill=0.8), run(problem, schedule)
    torch.testing.assert_close(taught.output.ce_BSH, alone.output.ce_BSH)
    torch.testing.assert_close(taught.output.weights_BSH, alone.output.weights_BSH)
    assert torch.equal(taught.output.measured_BSH, alone.output.measured_BSH)
    assert torch.equal(taught.output.correct_BSH, alone.output.correct_BSH)
    if alone.hidden_gradients[0] is not None:
        torch.testing.assert_close(
            taught.hidden_gradients[0], alone.hidden_gradients[0], rtol=1e-5, atol=1e-8
        )


@every_schedule
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_micro_batches_add_up_to_one_batch(schedule: Schedule, order: tuple[int, ...]) -> None:
    problem = make_problem(schedule)
    whole = run(problem, schedule, distill=0.5)
    into = fresh_gradients(problem, schedule)
    losses = []
    for b in order:
        rows = problem.rows(slice(b, b + 1))
        part = run(rows, schedule, into=into, valid_count=problem.valid_count, distill=0.5)
        losses.append(part.output.loss)
        for found, wanted in zip(part.hidden_gradients, whole.hidden_gradients, strict=True):
            if wanted is not None:
                torch.testing.assert_close(found, wanted[b : b + 1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(sum(losses), whole.output.loss)
    for total, wanted in zip(into, whole.W_gradients, strict=True):
        torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-7)


def test_a_case_worked_by_hand() -> None:
    """Two positions, two heads, two tokens, ``W`` the identity: hidden states are the logits.

    Head 1 at position 0 says q = (1/4, 3/4), head 0 at position 1 says p = (1/2, 1/2), the label
    is token 0 and a = 1/2. So the target is (3/4, 1/4), the gradient q - target = (-1/2, 1/2) and
    the loss -3/4 ln 1/4 - 1/4 ln 3/4.
    """
    q_HSV = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.25, 0.75], [0.2, 0.8]]])
    problem = Problem(
        [q_SV.log()[None].requires_grad_() for q_SV in q_HSV],
        [torch.eye(2)],
        (0,),
        torch.zeros(1, 2, 2, dtype=torch.int64),
        torch.tensor([[[False, True], [False, False]]]),
        torch.ones(1, 2, 2),
    )
    ones = Schedule("1", "known", lambda p: lambda ce, part: p.signal_BSH)
    result = run(problem, ones, distill=0.5, valid_count=1)
    wanted = -0.75 * math.log(0.25) - 0.25 * math.log(0.75)
    assert result.output.loss.item() == pytest.approx(wanted, rel=1e-6)
    assert result.output.ce_BSH[0, 0, 1].item() == pytest.approx(math.log(4), rel=1e-6)
    gradient = result.hidden_gradients[1]
    torch.testing.assert_close(gradient, torch.tensor([[[-0.5, 0.5], [0.0, 0.0]]]))


def test_the_last_positions_of_a_row_keep_their_label() -> None:
    """Rows of a long text aim beyond their end, where the row has no trunk to ask."""
    problem = make_problem()
    problem.targets_BSH = torch.randint(0, 50, (3, 7, 4))
    problem.valid_BSH[:] = True
    schedule = Schedule("dense", "known", known_dense)
    result = run(problem, schedule, distill=1.0)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=1.0)
    alone = run(problem, schedule)
    for h in range(1, 4):
        taught, label = result.hidden_gradients[h], alone.hidden_gradients[h]
        assert taught is not None
        assert label is not None
        torch.testing.assert_close(taught[:, 7 - h :], label[:, 7 - h :])
        assert (taught[:, : 7 - h] != label[:, : 7 - h]).any(-1).all()


def test_other_rows_of_the_batch_do_not_teach() -> None:
    problem = make_problem()
    problem.valid_BSH[:] = True
    problem.targets_BSH = problem.targets_BSH.clamp(min=0)
    schedule = Schedule("dense", "known", known_dense)
    before = run(problem, schedule, distill=1.0).hidden_gradients[3]
    with torch.no_grad():
        problem.hidden_HBSD[0][1] += 1.0
    after = run(problem, schedule, distill=1.0).hidden_gradients[3]
    assert before is not None
    assert after is not None
    changed_BS = (before != after).any(-1)
    assert torch.equal(changed_BS[1], torch.arange(7) + 3 < 7)
    assert not changed_BS[[0, 2]].any()


# work and memory ---------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts the rows of logits that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket is torch.ops.aten.mm and args[1].shape[1] == 50:
            self.rows += len(args[0])
        return func(*args, **(kwargs or {}))


# B * S = 21 positions, 18 of them in need of a teacher: 3 rows of the batch with 6 from s = 1 on,
# less the first two positions of row 0, whose prompt is masked. A chunk boundary adds up to H - 1.
@pytest.mark.parametrize(("chunk_rows", "more"), [(1000, 3 * 6 - 2), (16, 3 * 6 - 2 + 5 * 3)])
@pytest.mark.parametrize("scope", ["known", "token", "sequence"])
def test_a_position_teaches_all_heads_of_a_chunk_with_one_product(
    scope: str, chunk_rows: int, more: int
) -> None:
    schedule = next(s for s in UNFROZEN if s.scope == scope and s.exact_counts)
    problem = make_problem(schedule)
    with Products() as without:
        run(problem, schedule, chunk_rows=chunk_rows)
    with Products() as taught:
        run(problem, schedule, chunk_rows=chunk_rows, distill=0.5)
    # rows that are not taught name a position of their own, which may be one more in each row
    assert 0 < taught.rows - without.rows <= more + 3


@pytest.mark.parametrize("schedule", [s for s in SHARED if not s.exact_counts], ids=str)
def test_a_chunk_of_fixed_shape_needs_few_teachers(schedule: Schedule) -> None:
    """Of ``n`` rows without gaps at most ``(n + 2H - 2) // H + H - 1``; here n = 64 and H = 4."""
    problem = make_problem(schedule, S=16)
    workspace = Workspace(2 * 64 * 50 * 4, 64, exact_counts=False)
    with Products() as without:
        run(problem, schedule, workspace=workspace)
    with Products() as taught:
        run(problem, schedule, workspace=workspace, distill=0.5)
    chunks = 3 if schedule.scope != "sequence" else 6  # measured and learned apart, or at once
    assert taught.rows - without.rows <= chunks * ((64 + 6) // 4 + 3)


@every_schedule
def test_memory_is_the_gradients_and_the_workspace(schedule: Schedule) -> None:
    """The teacher's logits are in the workspace too."""
    problem = make_problem(schedule, B=2, S=64, D=128, V=1024)
    workspace = Workspace(128 * 1024 * 4, 32, exact_counts=schedule.exact_counts)
    into = fresh_gradients(problem, schedule)
    inputs = [*problem.hidden_HBSD, *problem.matrices, *(g for g in into if g is not None)]
    inputs += [problem.targets_BSH, problem.valid_BSH, problem.signal_BSH]
    with ByteCounter(inputs) as counter:
        run(problem, schedule, workspace=workspace, into=into, distill=0.5)
    targets = problem.targets_BSH.numel()
    hidden_bytes = targets * 128 * 4
    chunk_bytes = 4 * 32 * 128 * 4  # as without a teacher, and the states of its positions
    moved = 8 if schedule.exact_counts else 32  # rows of logits on the move: 32 MiB elsewhere
    notes = 28 * 8 * targets
    limit = workspace.limit_bytes + hidden_bytes + chunk_bytes + moved * 1024 * 4 + notes
    assert counter.largest <= max(workspace.limit_bytes, hidden_bytes)
    assert counter.peak <= limit, f"{counter.peak} bytes, {limit} allowed"


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not s.exact_counts], ids=str)
@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16], ids=str)
def test_nothing_is_read_back_where_counting_is_not_free(
    schedule: Schedule, product_dtype: torch.dtype | None
) -> None:
    problem = make_problem(schedule)
    if schedule.scope != "known":
        schedule = dataclasses.replace(schedule, weighting=lambda _: lambda ce, part: ce)
    workspace = schedule.workspace(problem, product_dtype=product_dtype)
    into, valid_count = fresh_gradients(problem, schedule), problem.valid_count
    if product_dtype:  # asks once, by trying, how the device multiplies 16-bit numbers
        run(problem, schedule, workspace=workspace, into=into, valid_count=valid_count)
    with WaitDetector():
        run(
            problem,
            schedule,
            workspace=workspace,
            into=into,
            valid_count=valid_count,
            distill=0.5,
        )


def test_a_bound_on_what_is_kept_leaves_gaps_that_are_taught_right() -> None:
    """Where shapes are fixed, rows with gaps each bring their own teacher."""

    def every_fifth(problem: Problem) -> Any:
        keep = torch.arange(28).view(7, 4) % 5 == 2
        return lambda ce, part: keep.expand(3, 7, 4).float()

    schedule = Schedule("gaps", "known", every_fifth, exact_counts=False)
    problem = make_problem(schedule, D=32)
    result = run(problem, schedule, kept_fraction=0.25, distill=0.5)
    assert result.output.gradient_rows == 24  # floor(0.25 * 28) + 1 of each row
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        run(make_problem(), SCHEDULES[0], distill=share)


@pytest.mark.parametrize("S", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=str)
def test_rows_shorter_than_the_horizon(S: int, schedule: Schedule) -> None:
    problem = make_problem(schedule, S=S)
    problem.valid_BSH[:] = True
    problem.targets_BSH = problem.targets_BSH.clamp(min=0)
    result = run(problem, schedule, distill=0.5)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=0.5)


def test_plain_formula_is_linear_in_the_share() -> None:
    problem = make_problem()
    logits = plain_logits(problem.hidden_HBSD, problem.matrices, problem).detach()
    ce = torch.rand(3, 7, 4)
    none, half, all_ = (distilled_ce(logits, ce, share) for share in (0.0, 0.5, 1.0))
    assert torch.equal(none, ce)
    torch.testing.assert_close(half, (none + all_) / 2)
    for h, s in itertools.product(range(4), range(7)):
        if h == 0 or s + h >= 7:
            assert torch.equal(all_[:, s, h], ce[:, s, h])


def test_plain_formula_sends_no_gradient_to_the_teacher() -> None:
    logits: Tensor = torch.randn(1, 5, 2, 6, requires_grad=True)
    distilled_ce(logits, torch.zeros(1, 5, 2), 1.0).sum().backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 0].any()
    assert logits.grad[:, :4, 1].any()
