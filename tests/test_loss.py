"""The one-pass loss against plain float64 autograd: every schedule, every gradient."""

import dataclasses
import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wmtp.loss import (
    LossOutput,
    Scope,
    Weigh,
    Workspace,
    fused_mtp_loss,
    measure_ce,
    weighted_mtp_loss,
)

# loss.md's goals: norm of the difference over the norm, against float64
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 3e-3}


@dataclass
class Problem:
    hidden_HBSD: list[Tensor]
    W_VD: Tensor
    targets_BSH: Tensor
    valid_BSH: Tensor
    signal_BSH: Tensor  # any measurement that weights may be made of

    @property
    def valid_count(self) -> int:
        return int(self.valid_BSH.sum())

    def rows(self, part: slice) -> "Problem":
        """A micro-batch: some rows, hidden states of its own."""
        return Problem(
            [x.detach()[part].clone().requires_grad_(x.requires_grad) for x in self.hidden_HBSD],
            self.W_VD,
            self.targets_BSH[part],
            self.valid_BSH[part],
            self.signal_BSH[part],
        )


def make_problem(
    B: int = 3,
    S: int = 7,
    H: int = 4,
    D: int = 16,
    V: int = 50,
    dtype: torch.dtype = torch.float32,
    frozen_heads: Sequence[int] = (),
) -> Problem:
    """Random hidden states whose logits spread over some nats; a prompt masked in row 0."""
    generator = torch.Generator().manual_seed(7)
    valid_BSH = (torch.arange(S)[:, None] + torch.arange(H) + 1 < S).repeat(B, 1, 1)
    valid_BSH[0, :2] = False
    targets_BSH = torch.randint(0, V, (B, S, H), generator=generator)
    targets_BSH[~valid_BSH] = -100  # ignored, whatever it is
    hidden = torch.randn(H, B, S, D, generator=generator).to(dtype)
    return Problem(
        [hidden[h].clone().requires_grad_(h not in frozen_heads) for h in range(H)],
        (torch.randn(V, D, generator=generator) * 2 / D**0.5).to(dtype),
        targets_BSH,
        valid_BSH,
        torch.rand(B, S, H, generator=generator) * 4,
    )


# weightings, as plain as can be ------------------------------------------------------------------


def known_dense(problem: Problem) -> Weigh:
    return lambda ce, part: 0.1 + problem.signal_BSH[part]


def known_with_zeros(problem: Problem) -> Weigh:
    return lambda ce, part: problem.signal_BSH[part].floor()  # a quarter is 0


def heads_compete(problem: Problem) -> Weigh:
    signal_NH, valid_NH = problem.signal_BSH.flatten(0, 1), problem.valid_BSH.flatten(0, 1)

    def weigh(ce: Tensor | None, part: slice | Tensor) -> Tensor:
        assert ce is not None
        assert ce.shape[0] == 1
        score = (ce - signal_NH[part]).masked_fill(~valid_NH[part], -1e9)
        return torch.softmax(score, -1) * valid_NH[part].sum(-1, keepdim=True)

    return weigh


def worst_head_only(problem: Problem) -> Weigh:
    valid_NH = problem.valid_BSH.flatten(0, 1)

    def weigh(ce: Tensor | None, part: slice | Tensor) -> Tensor:
        assert ce is not None
        score = ce.masked_fill(~valid_NH[part], -1.0)
        return (score == score.amax(-1, keepdim=True)).float()

    return weigh


def row_competes(problem: Problem) -> Weigh:
    def weigh(ce: Tensor | None, part: slice | Tensor) -> Tensor:
        assert ce is not None
        valid = problem.valid_BSH[part]
        score = (ce - problem.signal_BSH[part]).masked_fill(~valid, -1e9).flatten(1)
        share = torch.softmax(score, 1) * valid.flatten(1).sum(1, keepdim=True)
        return share.view_as(ce)

    return weigh


def upper_part_of_row(problem: Problem) -> Weigh:
    """Keep what lies above the row's median; a row's own work, so that rows must arrive whole."""

    def weigh(ce: Tensor | None, part: slice | Tensor) -> Tensor:
        assert ce is not None
        excess = ce - problem.signal_BSH[part]
        excess = torch.where(problem.valid_BSH[part], excess, torch.nan)
        return 2.0 * (excess > excess.flatten(1).nanmedian(1).values[:, None, None])

    return weigh


@dataclass(frozen=True)
class Schedule:
    name: str
    scope: Scope
    weighting: Callable[[Problem], Weigh]
    rows_that_fit: float = 1000.0  # in rows of the batch, for scope sequence
    exact_counts: bool = True
    frozen_unembedding: bool = False
    frozen_heads: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    def workspace(self, problem: Problem, chunk_rows: int = 16) -> Workspace:
        _, S, H = problem.targets_BSH.shape
        rows = max(1, round(self.rows_that_fit * S * H))
        return Workspace(
            rows * len(problem.W_VD) * 4, min(chunk_rows, rows), exact_counts=self.exact_counts
        )


SCHEDULES = [
    Schedule("known dense", "known", known_dense),
    Schedule("known with zeros", "known", known_with_zeros),
    Schedule("token", "token", heads_compete),
    Schedule("token with zeros", "token", worst_head_only),
    Schedule("sequence, all rows at once", "sequence", row_competes),
    Schedule("sequence, two rows at once", "sequence", row_competes, rows_that_fit=2.5),
    Schedule("sequence, one row at once", "sequence", upper_part_of_row, rows_that_fit=1.0),
    Schedule("sequence, most of a row held", "sequence", upper_part_of_row, rows_that_fit=0.7),
    Schedule("sequence, little of a row held", "sequence", row_competes, rows_that_fit=0.1),
    Schedule("frozen unembedding, known", "known", known_dense, frozen_unembedding=True),
    Schedule(
        "frozen unembedding and head 0, known",
        "known",
        known_with_zeros,
        frozen_unembedding=True,
        frozen_heads=(0,),
    ),
    Schedule(
        "frozen unembedding and head 0, token",
        "token",
        heads_compete,
        frozen_unembedding=True,
        frozen_heads=(0,),
    ),
    Schedule(
        "frozen unembedding and head 0, sequence",
        "sequence",
        upper_part_of_row,
        rows_that_fit=0.5,
        frozen_unembedding=True,
        frozen_heads=(0,),
    ),
    Schedule("frozen head 0, trained unembedding", "known", known_dense, frozen_heads=(0,)),
]
SCHEDULES += [
    dataclasses.replace(schedule, name=f"{schedule.name}, fixed shapes", exact_counts=False)
    for schedule in SCHEDULES
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@dataclass
class Result:
    output: LossOutput
    hidden_gradients: list[Tensor | None]
    W_gradient: Tensor | None


def run(
    problem: Problem,
    schedule: Schedule,
    *,
    chunk_rows: int = 16,
    into: Tensor | None = None,
    **options: Any,
) -> Result:
    """One micro-batch there and back, from fresh gradients unless ``into`` holds some."""
    for x in problem.hidden_HBSD:
        x.grad = None
    if not schedule.frozen_unembedding and into is None:
        into = torch.zeros(
            problem.W_VD.shape, dtype=torch.promote_types(problem.W_VD.dtype, torch.float32)
        )
    options = {"valid_count": problem.valid_count} | options
    output = fused_mtp_loss(
        problem.hidden_HBSD,
        problem.W_VD,
        problem.targets_BSH,
        problem.valid_BSH,
        schedule.weighting(problem),
        schedule.scope,
        unembedding_gradient_VD=into,
        workspace=schedule.workspace(problem, chunk_rows),
        **options,
    )
    output.loss.backward()
    return Result(output, [x.grad for x in problem.hidden_HBSD], into)


def plain_ce(hidden_HBSD: Sequence[Tensor], W_VD: Tensor, problem: Problem) -> Tensor:
    logits_BSHV = torch.stack(list(hidden_HBSD), 2) @ W_VD.T
    targets = torch.where(problem.valid_BSH, problem.targets_BSH, 0)
    return F.cross_entropy(logits_BSHV.movedim(-1, 1), targets, reduction="none")


def check_against_float64(
    problem: Problem,
    schedule: Schedule,
    result: Result,
    limit: float,
    head_scale: Sequence[float] | None = None,
    loss_scale: float = 1.0,
) -> None:
    """Loss, cross-entropy, hits and every gradient; the weights are taken as constants."""
    hidden = [x.detach().double().requires_grad_(x.requires_grad) for x in problem.hidden_HBSD]
    W_VD = problem.W_VD.double().requires_grad_(not schedule.frozen_unembedding)
    ce_BSH = plain_ce(hidden, W_VD, problem)
    scale_H = None if head_scale is None else torch.tensor(head_scale).double()
    output = result.output
    loss = weighted_mtp_loss(
        ce_BSH, output.weights_BSH.double(), problem.valid_BSH, problem.valid_count, scale_H
    )
    (loss * loss_scale).backward()

    torch.testing.assert_close(output.loss.double(), loss.detach(), rtol=2e-6, atol=0)
    measured = output.measured_BSH
    torch.testing.assert_close(
        output.ce_BSH.double()[measured], ce_BSH.detach()[measured], rtol=2e-6, atol=2e-6
    )
    assert not output.ce_BSH[~measured].any()
    pairs = list(zip(result.hidden_gradients, [x.grad for x in hidden], strict=True))
    for found, wanted in [*pairs, (result.W_gradient, W_VD.grad)]:
        if wanted is None:
            assert found is None
        else:
            assert found is not None
            error = (found.double() - wanted).norm() / wanted.norm()
            assert error < limit, f"relative error {error:.2e}"


# value and gradients -----------------------------------------------------------------------------


@every_schedule
def test_loss_and_every_gradient_agree_with_float64(schedule: Schedule) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    result = run(problem, schedule)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(
    "schedule", [s for s in SCHEDULES if "fixed" not in s.name and "frozen" not in s.name], ids=str
)
def test_gradients_stay_within_the_limits_at_realistic_width(
    schedule: Schedule, dtype: torch.dtype
) -> None:
    problem = make_problem(B=2, S=24, D=256, V=8192, dtype=dtype)
    result = run(problem, schedule, chunk_rows=64)
    check_against_float64(problem, schedule, result, LIMITS[dtype])


@every_schedule
def test_head_scale_and_loss_scale_reach_the_gradients(schedule: Schedule) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    head_scale, loss_scale = [1.0, 0.3, 0.5, 2.0], 1024.0
    result = run(problem, schedule, head_scale=head_scale, loss_scale=loss_scale)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], head_scale, loss_scale)


@every_schedule
def test_chunk_size_does_not_matter(schedule: Schedule) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    for chunk_rows in (1, 5, 1000):
        result = run(problem, schedule, chunk_rows=chunk_rows)
        check_against_float64(problem, schedule, result, LIMITS[torch.float32])


def test_weights_of_each_schedule_are_those_of_all_cross_entropies_at_once() -> None:
    """Chunks hand a weighting the same numbers, so it must not matter how many it sees."""
    problem = make_problem()
    ce_BSH = plain_ce(problem.hidden_HBSD, problem.W_VD, problem).detach()
    B, S, H = ce_BSH.shape
    for schedule in SCHEDULES:
        if schedule.frozen_heads:
            continue
        weigh = schedule.weighting(problem)
        if schedule.scope == "token":
            wanted = weigh(ce_BSH.view(1, -1, H), slice(0, B * S)).view(B, S, H)
        else:
            wanted = weigh(ce_BSH, slice(0, B))
        found = run(problem, schedule).output.weights_BSH
        torch.testing.assert_close(found, torch.where(problem.valid_BSH, wanted, 0).float())


@every_schedule
def test_ignored_targets_may_hold_anything(schedule: Schedule) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
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
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    unused_BSH = ~problem.valid_BSH
    with torch.no_grad():
        for h, x in enumerate(problem.hidden_HBSD):
            x[unused_BSH[:, :, h]] = torch.nan
    result = run(problem, schedule)
    assert result.output.loss.isfinite()
    assert result.W_gradient is None or result.W_gradient.isfinite().all()
    for h, gradient in enumerate(result.hidden_gradients):
        assert gradient is None or not gradient[unused_BSH[:, :, h]].any()


@every_schedule
@pytest.mark.parametrize("loss_scale", [1.0, 65536.0])
def test_nothing_valid_gives_zero_loss_and_zero_gradients(
    schedule: Schedule, loss_scale: float
) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    problem.valid_BSH[:] = False
    result = run(problem, schedule, valid_count=0, loss_scale=loss_scale)
    assert result.output.loss == 0
    assert not result.output.measured_BSH.any()
    for gradient in [*result.hidden_gradients, result.W_gradient]:
        assert gradient is None or torch.equal(gradient, torch.zeros_like(gradient))


@every_schedule
def test_a_row_without_targets_changes_nothing(schedule: Schedule) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    problem.valid_BSH[1] = False
    result = run(problem, schedule)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32])


# properties --------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1::2], ids=str)
def test_micro_batches_in_any_order_add_up_to_one_batch(
    schedule: Schedule, order: tuple[int, ...]
) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    whole = run(problem, schedule)
    into = None if schedule.frozen_unembedding else torch.zeros_like(problem.W_VD)
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
    if into is not None:
        torch.testing.assert_close(into, whole.W_gradient, rtol=1e-5, atol=1e-7)


def test_gradient_is_added_to_what_the_accumulator_holds() -> None:
    problem = make_problem()
    schedule = SCHEDULES[0]
    once = run(problem, schedule).W_gradient
    twice = run(problem, schedule, into=once.clone()).W_gradient
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
    ce_BSH = plain_ce(problem.hidden_HBSD, problem.W_VD, problem)
    torch.testing.assert_close(run(problem, ones).output.loss, ce_BSH[problem.valid_BSH].mean())


def test_weights_carry_no_gradient() -> None:
    problem = make_problem()
    strength = torch.tensor(1.5, requires_grad=True)
    schedule = Schedule("x", "known", lambda p: lambda ce, part: strength * p.signal_BSH)
    run(problem, schedule)
    assert strength.grad is None


# work, memory and what comes out -----------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [s for s in SCHEDULES if s.exact_counts and not s.frozen_heads], ids=str
)
def test_skipped_targets_do_no_gradient_work(schedule: Schedule) -> None:
    output = run(make_problem(), schedule).output
    assert output.gradient_rows == output.weights_BSH.count_nonzero()


def test_frozen_head_behind_a_frozen_unembedding_does_no_gradient_work() -> None:
    problem = make_problem(frozen_heads=(0,))
    schedule = next(s for s in SCHEDULES if s.name == "frozen unembedding and head 0, token")
    output = run(problem, schedule).output
    assert output.gradient_rows == problem.valid_BSH[:, :, 1:].sum()
    assert torch.equal(output.measured_BSH, problem.valid_BSH)


def test_head_of_scale_zero_is_measured_without_gradient_work() -> None:
    problem = make_problem()
    result = run(problem, SCHEDULES[0], head_scale=[1.0, 0.0, 1.0, 1.0])
    assert result.output.gradient_rows == problem.valid_BSH[:, :, [0, 2, 3]].sum()
    assert torch.equal(result.output.measured_BSH, problem.valid_BSH)
    assert not result.hidden_gradients[1].any()


@every_schedule
def test_output_says_what_was_measured_and_what_was_right(schedule: Schedule) -> None:
    problem = make_problem(frozen_heads=schedule.frozen_heads)
    logits_BSHV = torch.stack(problem.hidden_HBSD, 2) @ problem.W_VD.T
    # every other target is made the likeliest token, so that both answers occur
    likely = logits_BSHV.argmax(-1)
    problem.targets_BSH[:, ::2] = likely[:, ::2]
    output = run(problem, schedule).output
    expected = problem.valid_BSH.clone()
    if schedule.scope == "known" and schedule.exact_counts:
        expected &= schedule.weighting(problem)(None, slice(0, 3)) != 0
    assert torch.equal(output.measured_BSH, expected)
    assert torch.equal(output.correct_BSH, expected & (problem.targets_BSH == likely))
    assert not output.weights_BSH[~problem.valid_BSH].any()
    for constant in (output.ce_BSH, output.weights_BSH):
        assert constant.dtype == torch.float32
        assert not constant.requires_grad


def test_measuring_agrees_with_plain_cross_entropy() -> None:
    problem = make_problem()
    ce_BSH, correct_BSH = measure_ce(
        problem.hidden_HBSD,
        problem.W_VD,
        problem.targets_BSH,
        problem.valid_BSH,
        Workspace(chunk_rows=9),
    )
    wanted = plain_ce(problem.hidden_HBSD, problem.W_VD, problem) * problem.valid_BSH
    torch.testing.assert_close(ce_BSH, wanted.detach())
    likely = (torch.stack(problem.hidden_HBSD, 2) @ problem.W_VD.T).argmax(-1)
    assert torch.equal(correct_BSH, (likely == problem.targets_BSH) & problem.valid_BSH)


def test_huge_and_equal_logits_stay_exact() -> None:
    """No overflow at logits of a thousand; ln V where all logits are equal."""
    hidden = [torch.tensor([[[1000.0, 0.0], [0.0, 0.0]]])]
    W_VD = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]])
    targets_BSH = torch.tensor([[[1], [2]]])
    ce_BSH, correct_BSH = measure_ce(hidden, W_VD, targets_BSH, torch.ones(1, 2, 1).bool())
    wanted = torch.tensor([2000.0, math.log(3.0)])
    torch.testing.assert_close(ce_BSH.flatten(), wanted)
    assert correct_BSH.flatten().tolist() == [False, True]


class ByteCounter(TorchDispatchMode):
    """Counts the bytes of tensors made while it is on, and the most that lived at one time."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs = {x.untyped_storage().data_ptr() for x in inputs}
        self.live = self.peak = self.largest = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._seen or address in self.inputs or size == 0:
            return
        self._seen.add(address)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.live -= size


@every_schedule
def test_memory_is_the_gradients_and_the_workspace(schedule: Schedule) -> None:
    """No ``[B, S, H, V]`` tensor, and no second copy of a gradient when it is handed over."""
    problem = make_problem(B=2, S=64, D=128, V=1024, frozen_heads=schedule.frozen_heads)
    rows_fit = 128  # half a row of the batch
    workspace = Workspace(rows_fit * 1024 * 4, 32, exact_counts=schedule.exact_counts)
    gradient_VD = None if schedule.frozen_unembedding else torch.zeros_like(problem.W_VD)
    inputs = [*problem.hidden_HBSD, problem.W_VD, problem.targets_BSH, problem.valid_BSH]
    inputs += [problem.signal_BSH] + ([] if gradient_VD is None else [gradient_VD])
    with ByteCounter(inputs) as counter:
        fused_mtp_loss(
            problem.hidden_HBSD,
            problem.W_VD,
            problem.targets_BSH,
            problem.valid_BSH,
            schedule.weighting(problem),
            schedule.scope,
            valid_count=problem.valid_count,
            unembedding_gradient_VD=gradient_VD,
            workspace=workspace,
        ).loss.backward()
    targets = problem.targets_BSH.numel()
    hidden_bytes = targets * 128 * 4
    chunk_bytes = 3 * 32 * 128 * 4  # three [chunk, D] in a chunk's products
    gap_bytes = 8 * 1024 * 4  # rows of logits on the move
    notes = 16 * 8 * targets  # cross-entropy, weights, indices: some numbers for each target
    assert counter.largest <= max(workspace.limit_bytes, hidden_bytes)
    assert counter.largest < targets * 1024 * 4
    limit = workspace.limit_bytes + hidden_bytes + chunk_bytes + gap_bytes + notes
    assert counter.peak <= limit, f"{counter.peak} bytes, {limit} allowed"
    assert notes + chunk_bytes < hidden_bytes  # a second copy would not go unseen


def test_workspace_is_kept_between_micro_batches() -> None:
    workspace = Workspace(limit_bytes=4000)
    W_VD = torch.zeros(10, 2)
    first = workspace.logits(5, W_VD)
    assert workspace.logits(3, W_VD).data_ptr() == first.data_ptr()
    assert workspace.rows_that_fit(10, itemsize=4) == 100
    assert workspace.rows_that_fit(10**6, itemsize=4) == 1


# refusals ----------------------------------------------------------------------------------------


def unsent(problem: Problem, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "hidden_HBSD": problem.hidden_HBSD,
        "unembedding_VD": problem.W_VD,
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
        ({"unembedding_gradient_VD": torch.zeros(50, 17)}, "must be torch.float32"),
        ({"unembedding_gradient_VD": torch.zeros(50, 16).half()}, "not torch.float16"),
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


# the plain formula -------------------------------------------------------------------------------


def test_plain_formula_counts_heads_by_their_scale() -> None:
    """Head 1 counts half: N = 2 + 0.5; (1*2 + 3*1 + 0.5*0.5*4) / 2.5 = 2.4."""
    ce = torch.tensor([[[2.0, 4.0], [1.0, 9.0]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    weights = torch.tensor([[[1.0, 0.5], [3.0, 7.0]]])
    loss = weighted_mtp_loss(ce, weights, valid, 2.5, head_scale_H=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, torch.tensor(2.4))


def test_plain_formula_has_zero_gradient_where_nothing_is_valid() -> None:
    ce = torch.full((1, 2, 2), torch.inf, requires_grad=True)
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    loss = weighted_mtp_loss(ce, torch.ones(1, 2, 2), nothing, valid_count=0)
    loss.backward()
    assert loss == 0
    assert torch.equal(ce.grad, torch.zeros(1, 2, 2))


def test_plain_formula_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        weighted_mtp_loss(torch.ones(1, 2, 2), torch.ones(1, 2, 1), torch.ones(1, 2, 2).bool(), 4)
