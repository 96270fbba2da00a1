"""The Triton kernel beside the torch operations; run by ``test_softmax_step.py``.

On a CPU it needs ``TRITON_INTERPRET=1`` before Triton is imported by anything.
"""

import pytest
import torch

from tests.loss.problems import LIMITS, SCHEDULES, check_against_float64, make_problem, run
from tests.loss.test_softmax_step import logits_and_targets
from wmtp.loss.softmax_kernel import softmax_minus_one_hot as softmax_kernel
from wmtp.loss.softmax_step import NO_TARGET, softmax_minus_one_hot
from wmtp.loss.workspace import Workspace

# a bf16 number is off by at most 2^-9 of itself once it is rounded; one step of rounding apart
BF16 = {"rtol": 2**-7, "atol": 1e-6}
SIZES = [(3, 5), (2, 64), (4, 1000), (2, 20_000)]  # the last one takes three blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_equals_the_torch_operations(size: tuple[int, int], dtype: torch.dtype) -> None:
    logits, targets = logits_and_targets(*size)
    ours, theirs = logits.to(dtype, copy=True), logits.to(dtype, copy=True)
    ce, correct = softmax_kernel(ours, targets)
    wanted_ce, wanted_correct = softmax_minus_one_hot(theirs, targets)
    # the same float32 formula in another order: sums over 20 000 terms differ in the last digits
    torch.testing.assert_close(ce, wanted_ce, rtol=1e-5, atol=2e-6)
    assert torch.equal(correct, wanted_correct)
    assert correct.dtype == torch.bool
    torch.testing.assert_close(ours, theirs, **(BF16 if dtype == torch.bfloat16 else {}))


def test_kernel_is_exact_for_huge_and_equal_logits() -> None:
    logits = torch.tensor([[1000.0, -1000.0, 500.0], [0.0, 0.0, 0.0]])
    ce, correct = softmax_kernel(logits, torch.tensor([1, 2]))
    torch.testing.assert_close(ce, torch.tensor([2000.0, 1.0986123]))
    assert correct.tolist() == [False, True]
    third = 1 / 3
    torch.testing.assert_close(logits, torch.tensor([[1.0, -1, 0], [third, third, third - 1]]))


def test_kernel_leaves_what_lies_beside_its_columns_alone() -> None:
    wide = torch.full((3, 12), 7.0)
    logits = wide[:, :10]  # a row does not begin where the one before ends
    softmax_kernel(logits, torch.tensor([0, 1, NO_TARGET]))
    assert torch.equal(wide[:, 10:], torch.full((3, 2), 7.0))
    torch.testing.assert_close(logits.sum(1), torch.zeros(3), atol=1e-6, rtol=0)


def test_kernel_shows_a_logit_that_is_not_a_number() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = torch.nan
    ce, _ = softmax_kernel(logits, torch.tensor([0]))
    assert ce.isnan().all()


def test_kernel_takes_no_rows() -> None:
    ce, correct = softmax_kernel(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert ce.shape == correct.shape == (0,)


def test_workspace_runs_the_kernel_if_told() -> None:
    assert Workspace(kernel=True).softmax_step is softmax_kernel
    assert Workspace().softmax_step is softmax_minus_one_hot


@pytest.mark.parametrize("exact_counts", [True, False])
def test_kernel_serves_targets_that_the_trunk_has_a_share_in(exact_counts: bool) -> None:
    problem, schedule = make_problem(), SCHEDULES[0]
    workspace = Workspace(chunk_rows=16, exact_counts=exact_counts, kernel=True)
    result = run(problem, schedule, workspace=workspace, distill=0.5)
    check_against_float64(problem, schedule, result, LIMITS[torch.float32], distill=0.5)
