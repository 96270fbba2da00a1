"""One micro-batch's loss and the bare matrix products that no way to compute it can do without."""

import functools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from wmtp.loss import Scope, Weigh, Workspace, fused_mtp_loss
from wmtp.loss.pieces import MEBIBYTE
from wmtp.runtime.device import Kind, Precision, describe_device
from wmtp.weighting import Signals, Weighting, weigh_chunk

CHUNK_ROWS = 512
WORKSPACE_BYTES = 256 * MEBIBYTE
SKIPPED = 0.3


@dataclass
class Problem:
    """One micro-batch: H hidden states, their matrices, targets and a reference.

    Attributes:
        matrices: one that all heads share, or one for each.
        weights_BSH: what schemes with weights known beforehand are given.
    """

    hidden_HBSD: list[Tensor]
    matrices: list[Tensor]
    targets_BSH: Tensor
    valid_BSH: Tensor
    reference_ce_BSH: Tensor
    weights_BSH: Tensor

    @property
    def W_VD(self) -> Tensor:
        """The matrix of head 0."""
        return self.matrices[0]

    def matrix(self, head: int) -> Tensor:
        """The matrix of a head."""
        return self.matrices[head % len(self.matrices)]

    @property
    def product_dtype(self) -> torch.dtype:
        """Of the loss's products, on this device for hidden states of this dtype."""
        hidden = self.hidden_HBSD[0]
        precision: Precision = "fp32" if hidden.dtype == torch.float32 else "bf16"
        kind = cast(Kind, hidden.device.type)
        return describe_device(kind, precision).loss_product_dtype or torch.float32

    @property
    def rows(self) -> int:
        """Number of targets."""
        return self.targets_BSH.numel()

    @property
    def gradient_bytes(self) -> int:
        """The unembeddings' gradients in float32, the hidden states' in their own dtype."""
        hidden = self.hidden_HBSD[0]
        return (
            len(self.matrices) * self.W_VD.numel() * 4
            + self.rows * hidden.shape[-1] * hidden.element_size()
        )


def make_problem(
    rows: int,
    dim: int,
    vocab: int,
    heads: int,
    dtype: torch.dtype,
    *,
    own: bool = False,
    device: torch.device | None = None,
) -> Problem:
    """As many targets as asked, in rows of the batch whose logits fit the workspace.

    ``own`` gives each head a matrix of its own. Without a device it lies on the CPU.
    """
    positions = max(1, rows // heads)
    B = -(-positions * heads * vocab * 4 // WORKSPACE_BYTES)
    S = positions // B
    here = device or torch.device("cpu")
    torch.manual_seed(0)
    hidden = [torch.randn(B, S, dim).to(here, dtype).requires_grad_() for _ in range(heads)]
    matrices = [
        (torch.randn(vocab, dim) * 2 / dim**0.5).to(here, dtype).requires_grad_()
        for _ in range(heads if own else 1)
    ]
    shape = (B, S, heads)
    targets_BSH, reference_BSH = torch.randint(0, vocab, shape), torch.rand(shape) * 12
    valid_BSH = torch.ones(shape, dtype=torch.bool, device=here)
    weights_BSH = torch.ones(shape, device=here)
    targets_BSH, reference_BSH = targets_BSH.to(here), reference_BSH.to(here)
    return Problem(hidden, matrices, targets_BSH, valid_BSH, reference_BSH, weights_BSH)


def bare_products(problem: Problem) -> None:
    """The three products that no scheme can do without, a chunk at a time.

    They are in float32, or in 16 bits throughout where the loss has its own in 16. With a matrix
    for each head: of the rows of one head after the other.
    """
    dtype = problem.product_dtype
    x_HND = torch.stack([x.detach().to(dtype).flatten(0, 1) for x in problem.hidden_HBSD])
    if len(problem.matrices) == 1:
        x_HND = x_HND.transpose(0, 1).reshape(1, problem.rows, -1)
    chunk_rows = min(CHUNK_ROWS, x_HND.shape[1])
    z_RV = torch.empty(chunk_rows, len(problem.W_VD), dtype=dtype, device=x_HND.device)
    gradient_HND = torch.empty_like(x_HND)
    for matrix, x_ND, gradient_ND in zip(problem.matrices, x_HND, gradient_HND, strict=True):
        W_VD = matrix.detach().to(dtype)
        gradient_VD = torch.zeros_like(W_VD)
        for x, dx in zip(x_ND.split(chunk_rows), gradient_ND.split(chunk_rows), strict=True):
            z = z_RV[: len(x)]
            torch.mm(x, W_VD.t(), out=z)
            torch.mm(z, W_VD, out=dx)
            gradient_VD.addmm_(z.t(), x)


@functools.cache
def workspace_of(limit_bytes: int, product_dtype: torch.dtype) -> Workspace:
    """Kept from one round to the next, as a training run keeps it."""
    narrow = None if product_dtype == torch.float32 else product_dtype
    return Workspace(limit_bytes, CHUNK_ROWS, product_dtype=narrow)


def learn(
    problem: Problem, weigh: Weigh, scope: Scope, workspace: Workspace, *, frozen: bool = False
) -> None:
    """One call and its backward; ``frozen`` leaves the unembedding without a gradient."""
    gradients = [
        None if frozen else torch.zeros(matrix.shape, device=matrix.device)
        for matrix in problem.matrices
    ]
    fused_mtp_loss(
        problem.hidden_HBSD,
        problem.matrices,
        problem.targets_BSH,
        problem.valid_BSH,
        weigh,
        scope,
        valid_count=problem.rows,
        unembedding_gradients=gradients,
        workspace=workspace,
    ).loss.backward()  # type: ignore[no-untyped-call]
    for matrix, gradient_VD in zip(problem.matrices, gradients, strict=True):
        if gradient_VD is not None:
            matrix.grad = gradient_VD.to(matrix.dtype)


def learn_weighted(problem: Problem, weighting: Weighting, workspace: Workspace) -> None:
    """One call with the weights of an algorithm."""
    signals = Signals(problem.valid_BSH, reference_ce=problem.reference_ce_BSH)
    learn(
        problem,
        lambda ce, part: weigh_chunk(weighting, signals, ce, part),
        weighting.scope,
        workspace,
    )


def forget_gradients(problem: Problem) -> None:
    """Let go of all gradients."""
    for tensor in [*problem.hidden_HBSD, *problem.matrices]:
        tensor.grad = None
