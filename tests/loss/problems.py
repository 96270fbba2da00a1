"""Toy problems, weightings and schedules for the one-pass loss, and float64 to compare with."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.loss import (
    LossOutput,
    Scope,
    Weigh,
    Workspace,
    distilled_ce,
    fused_mtp_loss,
    weighted_mtp_loss,
    z_loss_ce,
)

# loss.md's goals: norm of the difference over the norm, against float64
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 3e-3}


@dataclass
class Problem:
    hidden_HBSD: list[Tensor]
    matrices: list[Tensor]
    matrix_of_head: tuple[int, ...]  # one for all heads, or one for each
    targets_BSH: Tensor
    valid_BSH: Tensor
    signal_BSH: Tensor  # any measurement that weights may be made of

    @property
    def W_VD(self) -> Tensor:
        """The matrix of head 0, where one will do to tell shape and dtype."""
        return self.matrices[0]

    @property
    def unembeddings(self) -> list[Tensor]:
        return [self.matrices[m] for m in self.matrix_of_head]

    @property
    def valid_count(self) -> int:
        return int(self.valid_BSH.sum())

    def rows(self, part: slice) -> "Problem":
        """A micro-batch: some rows, hidden states of its own."""
        return Problem(
            [x.detach()[part].clone().requires_grad_(x.requires_grad) for x in self.hidden_HBSD],
            self.matrices,
            self.matrix_of_head,
            self.targets_BSH[part],
            self.valid_BSH[part],
            self.signal_BSH[part],
        )


def make_problem(
    schedule: "Schedule | None" = None,
    *,
    B: int = 3,
    S: int = 7,
    H: int = 4,
    D: int = 16,
    V: int = 50,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Random hidden states whose logits spread over some nats; a prompt masked in row 0."""
    generator = torch.Generator().manual_seed(7)
    valid_BSH = (torch.arange(S)[:, None] + torch.arange(H) + 1 < S).repeat(B, 1, 1)
    valid_BSH[0, :2] = False
    targets_BSH = torch.randint(0, V, (B, S, H), generator=generator)
    targets_BSH[~valid_BSH] = -100  # ignored, whatever it is
    hidden = torch.randn(H, B, S, D, generator=generator).to(dtype)
    frozen_heads = schedule.frozen_heads if schedule else ()
    matrix_of_head = schedule.matrix_of_head if schedule else (0,)
    matrices = torch.randn(max(matrix_of_head) + 1, V, D, generator=generator) * 2 / D**0.5
    return Problem(
        [hidden[h].clone().requires_grad_(h not in frozen_heads) for h in range(H)],
        list(matrices.to(dtype)),
        matrix_of_head,
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
    matrix_of_head: tuple[int, ...] = (0,)
    frozen_matrices: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    def trains(self, matrix: int) -> bool:
        return not self.frozen_unembedding and matrix not in self.frozen_matrices

    def workspace(
        self,
        problem: Problem,
        chunk_rows: int = 16,
        product_dtype: torch.dtype | None = None,
    ) -> Workspace:
        _, S, H = problem.targets_BSH.shape
        rows = max(1, round(self.rows_that_fit * S * H))
        row_bytes = len(problem.W_VD) * 4
        if product_dtype is not None:  # 16-bit rows begin at a multiple of 64 numbers
            row_bytes = -(-len(problem.W_VD) // 64) * 64 * 2
        return Workspace(
            rows * row_bytes,
            min(chunk_rows, rows),
            exact_counts=self.exact_counts,
            product_dtype=product_dtype,
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
OWN = (0, 1, 2, 3)  # a matrix for each head
SCHEDULES += [
    Schedule("own, known dense", "known", known_dense, matrix_of_head=OWN),
    Schedule("own, known with zeros", "known", known_with_zeros, matrix_of_head=OWN),
    Schedule("own, token", "token", heads_compete, matrix_of_head=OWN),
    Schedule("own, token with zeros", "token", worst_head_only, matrix_of_head=OWN),
    Schedule("own, sequence, all rows", "sequence", row_competes, matrix_of_head=OWN),
    Schedule("own, sequence, most held", "sequence", upper_part_of_row, 0.7, matrix_of_head=OWN),
    Schedule("own, sequence, little held", "sequence", row_competes, 0.1, matrix_of_head=OWN),
    Schedule(
        "own, one frozen, known",
        "known",
        known_with_zeros,
        matrix_of_head=OWN,
        frozen_matrices=(1,),
    ),
    Schedule(
        "own, frozen head and matrix, token",
        "token",
        heads_compete,
        frozen_heads=(0,),
        matrix_of_head=OWN,
        frozen_matrices=(0,),
    ),
    Schedule(
        "own, frozen head and matrix, sequence",
        "sequence",
        upper_part_of_row,
        0.5,
        frozen_heads=(0,),
        matrix_of_head=OWN,
        frozen_matrices=(0, 2),
    ),
    Schedule("two pairs, sequence", "sequence", row_competes, 0.5, matrix_of_head=(0, 1, 1, 0)),
]
SCHEDULES += [
    dataclasses.replace(schedule, name=f"{schedule.name}, fixed shapes", exact_counts=False)
    for schedule in SCHEDULES
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def fresh_gradients(problem: Problem, schedule: Schedule) -> list[Tensor | None]:
    dtype = torch.promote_types(problem.W_VD.dtype, torch.float32)
    return [
        torch.zeros(matrix.shape, dtype=dtype) if schedule.trains(m) else None
        for m, matrix in enumerate(problem.matrices)
    ]


@dataclass
class Result:
    output: LossOutput
    hidden_gradients: list[Tensor | None]
    W_gradients: list[Tensor | None]  # one for each matrix

    @property
    def W_gradient(self) -> Tensor | None:
        """Of the matrix of head 0."""
        return self.W_gradients[0]


def run(
    problem: Problem,
    schedule: Schedule,
    *,
    chunk_rows: int = 16,
    workspace: Workspace | None = None,
    into: list[Tensor | None] | None = None,
    **options: Any,
) -> Result:
    """One micro-batch there and back, from fresh gradients unless ``into`` holds some."""
    for x in problem.hidden_HBSD:
        x.grad = None
    if into is None:
        into = fresh_gradients(problem, schedule)
    if "valid_count" not in options:
        options["valid_count"] = problem.valid_count
    output = fused_mtp_loss(
        problem.hidden_HBSD,
        problem.unembeddings,
        problem.targets_BSH,
        problem.valid_BSH,
        schedule.weighting(problem),
        schedule.scope,
        unembedding_gradients=[into[m] for m in problem.matrix_of_head],
        workspace=workspace or schedule.workspace(problem, chunk_rows),
        **options,
    )
    output.loss.backward()
    return Result(output, [x.grad for x in problem.hidden_HBSD], into)


def plain_logits(
    hidden_HBSD: Sequence[Tensor], matrices: Sequence[Tensor], problem: Problem
) -> Tensor:
    of_head = problem.matrix_of_head
    return torch.stack(
        [x @ matrices[of_head[h % len(of_head)]].T for h, x in enumerate(hidden_HBSD)], 2
    )


def plain_ce(hidden_HBSD: Sequence[Tensor], matrices: Sequence[Tensor], problem: Problem) -> Tensor:
    return ce_of_logits(plain_logits(hidden_HBSD, matrices, problem), problem)


def ce_of_logits(logits_BSHV: Tensor, problem: Problem) -> Tensor:
    targets = torch.where(problem.valid_BSH, problem.targets_BSH, 0)
    return F.cross_entropy(logits_BSHV.movedim(-1, 1), targets, reduction="none")


def check_against_float64(
    problem: Problem,
    schedule: Schedule,
    result: Result,
    limit: float,
    head_scale: Sequence[float] | None = None,
    loss_scale: float = 1.0,
    ce_tolerance: float = 2e-6,
    together: bool = False,
    distill: float = 0.0,
    z_loss: float = 0.0,
) -> None:
    """Loss, cross-entropy, hits and every gradient; the weights are taken as constants."""
    hidden = [x.detach().double().requires_grad_(x.requires_grad) for x in problem.hidden_HBSD]
    matrices = [
        matrix.double().requires_grad_(schedule.trains(m))
        for m, matrix in enumerate(problem.matrices)
    ]
    logits_BSHV = plain_logits(hidden, matrices, problem)
    ce_BSH = ce_of_logits(logits_BSHV, problem)
    shared_BSH = distilled_ce(logits_BSHV, ce_BSH, distill) if distill else ce_BSH
    if z_loss:
        shared_BSH = z_loss_ce(logits_BSHV, shared_BSH, z_loss)
    scale_H = None if head_scale is None else torch.tensor(head_scale).double()
    output = result.output
    loss = weighted_mtp_loss(
        shared_BSH, output.weights_BSH.double(), problem.valid_BSH, problem.valid_count, scale_H
    )
    (loss * loss_scale).backward()

    torch.testing.assert_close(output.loss.double(), loss.detach(), rtol=ce_tolerance, atol=0)
    measured = output.measured_BSH
    torch.testing.assert_close(
        output.ce_BSH.double()[measured],
        ce_BSH.detach()[measured],
        rtol=ce_tolerance,
        atol=ce_tolerance,
    )
    assert not output.ce_BSH[~measured].any()
    pairs = list(zip(result.hidden_gradients, [x.grad for x in hidden], strict=True))
    pairs += zip(result.W_gradients, [matrix.grad for matrix in matrices], strict=True)
    if together:
        known = [(found, wanted) for found, wanted in pairs if wanted is not None]
        pairs = [
            tuple(
                torch.cat([t.double().flatten() for t in side]) for side in zip(*known, strict=True)
            )
        ]
    for found, wanted in pairs:
        if wanted is None:
            assert found is None
        else:
            assert found is not None
            error = (found.double() - wanted).norm()
            # a matrix whose targets all weigh 0 has gradient 0, to the last bit
            assert error <= limit * wanted.norm(), f"relative error {error / wanted.norm():.2e}"
