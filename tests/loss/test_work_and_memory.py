"""What the one-pass loss does no work for, how much it holds, and what it tells."""

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.loss.problems import (
    LIMITS,
    SCHEDULES,
    Problem,
    Schedule,
    check_against_float64,
    every_schedule,
    fresh_gradients,
    make_problem,
    plain_ce,
    plain_logits,
    run,
)
from wmtp.loss import Scope, Weigh, Workspace, measure_ce
from wmtp.weighting.rho1 import Rho1, kept_weights


@pytest.mark.parametrize(
    "schedule", [s for s in SCHEDULES if s.exact_counts and not s.frozen_heads], ids=str
)
def test_skipped_targets_do_no_gradient_work(schedule: Schedule) -> None:
    output = run(make_problem(schedule), schedule).output
    assert output.gradient_rows == output.weights_BSH.count_nonzero()


def test_frozen_head_behind_a_frozen_unembedding_does_no_gradient_work() -> None:
    schedule = next(s for s in SCHEDULES if s.name == "frozen unembedding and head 0, token")
    problem = make_problem(schedule)
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
    problem = make_problem(schedule)
    logits_BSHV = plain_logits(problem.hidden_HBSD, problem.matrices, problem)
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
        problem.unembeddings,
        problem.targets_BSH,
        problem.valid_BSH,
        Workspace(chunk_rows=9),
    )
    wanted = plain_ce(problem.hidden_HBSD, problem.matrices, problem) * problem.valid_BSH
    torch.testing.assert_close(ce_BSH, wanted.detach())
    likely = (torch.stack(problem.hidden_HBSD, 2) @ problem.W_VD.T).argmax(-1)
    assert torch.equal(correct_BSH, (likely == problem.targets_BSH) & problem.valid_BSH)


def test_huge_and_equal_logits_stay_exact() -> None:
    """No overflow at logits of a thousand; ln V where all logits are equal."""
    hidden = [torch.tensor([[[1000.0, 0.0], [0.0, 0.0]]])]
    W_VD = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]])
    targets_BSH = torch.tensor([[[1], [2]]])
    ce_BSH, correct_BSH = measure_ce(hidden, [W_VD], targets_BSH, torch.ones(1, 2, 1).bool())
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
    problem = make_problem(schedule, B=2, S=64, D=128, V=1024)
    rows_fit = 128  # half a row of the batch
    workspace = Workspace(rows_fit * 1024 * 4, 32, exact_counts=schedule.exact_counts)
    into = fresh_gradients(problem, schedule)
    inputs = [*problem.hidden_HBSD, *problem.matrices, *(g for g in into if g is not None)]
    inputs += [problem.targets_BSH, problem.valid_BSH, problem.signal_BSH]
    with ByteCounter(inputs) as counter:
        run(problem, schedule, workspace=workspace, into=into)
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


class WaitDetector(TorchDispatchMode):
    """Refuses what would make an accelerator wait: shapes or numbers read from its tensors."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert func.overloadpacket not in WAITING, f"{func} reads back from the device"
        for indices in args[1:2] if func.overloadpacket in INDEXING else ():
            assert not any(i is not None and i.dtype == torch.bool for i in indices), func
        return func(*args, **(kwargs or {}))


ATEN = torch.ops.aten
WAITING = {
    ATEN._local_scalar_dense,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.unique_consecutive,
    ATEN._unique2,
    ATEN.bincount,
    ATEN.equal,
    ATEN.repeat_interleave,
}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not s.exact_counts], ids=str)
@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16], ids=str)
def test_nothing_is_read_back_where_counting_is_not_free(
    schedule: Schedule, product_dtype: torch.dtype | None
) -> None:
    problem = make_problem(schedule)
    weigh = schedule.weighting(problem)(None, slice(0, 3)) if schedule.scope == "known" else None
    if schedule.scope != "known":
        schedule = dataclasses.replace(schedule, weighting=lambda _: lambda ce, part: ce)
    workspace = schedule.workspace(problem, product_dtype=product_dtype)
    into, valid_count = fresh_gradients(problem, schedule), problem.valid_count
    if product_dtype:  # asks once, by trying, how the device multiplies 16-bit numbers
        run(problem, schedule, workspace=workspace, into=into, valid_count=valid_count)
    with WaitDetector():
        run(problem, schedule, workspace=workspace, into=into, valid_count=valid_count)
    assert weigh is None or weigh.any()


@pytest.mark.parametrize("reading", [torch.Tensor.item, torch.Tensor.nonzero], ids=str)
def test_wait_detector_detects(reading: Any) -> None:
    with WaitDetector(), pytest.raises(AssertionError, match="reads back"):
        reading(torch.ones(1))
    with WaitDetector(), pytest.raises(AssertionError, match="index"):
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]


# a bound on what is kept, where it cannot be counted ---------------------------------------------


def keep_the_worst(kept: int) -> Callable[[Problem], Weigh]:
    """So many targets of each row of the batch, those with the highest cross-entropy."""

    def of(problem: Problem) -> Weigh:
        def weigh(ce: Tensor | None, part: slice | Tensor) -> Tensor:
            score = problem.signal_BSH[part] if ce is None else ce
            score = score.masked_fill(~problem.valid_BSH[part], -1.0).flatten(1)
            best = score.topk(kept, 1).indices
            return torch.zeros_like(score).scatter_(1, best, 1.5).view(-1, 7, 4)

        return weigh

    return of


# A row has 28 places; kept_fraction 0.25 allows floor(7) + 1 = 8 of them. Rows of the batch
# together: 24. 18 + 18 + 11 valid targets (row 0 lost 7 + 4 to its prompt): see each case.
@pytest.mark.parametrize(
    ("scope", "rows_that_fit", "gradient_rows"),
    [
        ("known", 1000.0, 24),
        ("sequence", 1000.0, 24),  # all three rows held: 24 of 84 at hand
        ("sequence", 1.0, 24),  # each row held: 8 of 28, three times
        ("sequence", 0.5, 24),  # half a row held: rather 8 anew than up to 8 of each half
    ],
)
@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16], ids=str)
def test_bound_on_what_is_kept_saves_work_without_a_count(
    scope: Scope, rows_that_fit: float, gradient_rows: int, product_dtype: torch.dtype | None
) -> None:
    schedule = Schedule("kept", scope, keep_the_worst(4), rows_that_fit, exact_counts=False)
    problem = make_problem(schedule)
    workspace = schedule.workspace(problem, product_dtype=product_dtype)
    result = run(problem, schedule, workspace=workspace, kept_fraction=0.25)
    assert result.output.gradient_rows == gradient_rows
    assert result.output.weights_BSH.count_nonzero() == 12
    limit = LIMITS[torch.float32] if product_dtype is None else 2e-2  # D = 16, V = 50: see below
    check_against_float64(problem, schedule, result, limit, ce_tolerance=limit * 2)


def test_known_number_of_valid_targets_saves_work_without_a_count() -> None:
    """3 heads' triangle of 7 positions gives 6 + 5 + 4 + 3 = 18; row 0 lost 2 of each head."""
    schedule = next(s for s in SCHEDULES if s.name == "known dense, fixed shapes")
    problem = make_problem(schedule)
    assert problem.valid_count == 18 + 18 + 10
    result = run(problem, schedule, valid_targets=problem.valid_count)
    assert result.output.gradient_rows == 46
    check_against_float64(problem, schedule, result, LIMITS[torch.float32])


def test_bound_is_not_used_where_heads_have_their_own_matrices() -> None:
    schedule = Schedule(
        "own", "sequence", keep_the_worst(4), exact_counts=False, matrix_of_head=(0, 1, 2, 3)
    )
    problem = make_problem(schedule)
    result = run(problem, schedule, kept_fraction=0.25, valid_targets=problem.valid_count)
    assert result.output.gradient_rows == 84
    check_against_float64(problem, schedule, result, LIMITS[torch.float32])


@pytest.mark.parametrize("scope", ["known", "sequence"])
def test_weighting_that_keeps_more_than_it_says_is_refused(scope: Scope) -> None:
    schedule = Schedule("more", scope, keep_the_worst(9), exact_counts=False)
    with pytest.raises(RuntimeError, match="more targets have a weight than"):
        run(make_problem(schedule), schedule, kept_fraction=0.25)


def test_bound_of_token_skip_holds_for_every_number_of_targets() -> None:
    """rho1 keeps n - floor(skip * n); a row of the loss allows floor(kept_fraction * n) + 1."""
    for skip in (0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.999999):
        kept_fraction = Rho1(mode="token_skip", skip_fraction=skip).kept_fraction
        for n in range(1, 300):
            valid = torch.ones(1, n, 1, dtype=torch.bool)
            kept = kept_weights(torch.rand(1, n, 1), valid, skip).count_nonzero()
            assert kept <= math.floor(kept_fraction * n) + 1
    assert Rho1(skip_fraction=0.3).kept_fraction == 1.0
