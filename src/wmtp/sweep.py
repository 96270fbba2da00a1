"""One pass over the targets of a micro-batch: the schedules behind ``loss.fused_mtp_loss``.

``Workspace`` holds a few hundred rows of logits, ``Sweep`` fills them chunk by chunk, asks for
weights when the cross-entropy they depend on is there, and turns the same memory into gradients.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["known", "token", "sequence"]
"""What a weight depends on: nothing the loss computes, the cross-entropy of all heads at one
position, or the cross-entropy of a whole row of the batch."""

Weigh = Callable[[Tensor | None, slice | Tensor], Tensor]
"""``weigh(ce, part) -> weights``, float32 of the shape of ``ce``.

``known``: called once with ``(None, slice(0, B))``, returns ``[B, S, H]``.
``token``: ``ce`` is ``[1, n, H]`` and ``part`` says which of the ``B * S`` positions these are.
``sequence``: ``ce`` is ``[b, S, H]`` and ``part`` is the slice of rows of the batch.
"""

MEBIBYTE = 1 << 20


class Workspace:
    """Scratch memory for logits, kept between micro-batches so that it is paged in once.

    Args:
        limit_bytes: the most that logits may take, whatever B, S and H are.
        chunk_rows: rows of logits handled at a time; 256-512 suits CPU caches.
        exact_counts: reading a count back from the device is free (CPU), so that rows which need
            no work are left out. Elsewhere shapes stay fixed and such rows get weight 0.
    """

    def __init__(
        self,
        limit_bytes: int = 256 * MEBIBYTE,
        chunk_rows: int = 512,
        *,
        exact_counts: bool = True,
    ) -> None:
        if limit_bytes < 1 or chunk_rows < 1:
            raise ValueError(f"limit_bytes={limit_bytes}, chunk_rows={chunk_rows} must be positive")
        self.limit_bytes = limit_bytes
        self.chunk_rows = chunk_rows
        self.exact_counts = exact_counts
        self._buffer: Tensor | None = None

    def rows_that_fit(self, vocab_size: int, itemsize: int) -> int:
        """How many rows of logits the limit allows, at least one."""
        return max(1, self.limit_bytes // (vocab_size * itemsize))

    def rows_per_chunk(self, vocab_size: int, itemsize: int) -> int:
        """Rows handled by one matrix product."""
        return min(self.chunk_rows, self.rows_that_fit(vocab_size, itemsize))

    def logits(self, rows: int, like_VD: Tensor) -> Tensor:
        """Return uninitialized ``[rows, V]`` scratch of the dtype and device of ``like_VD``."""
        count = rows * like_VD.shape[0]
        held = self._buffer
        if (
            held is None
            or held.numel() < count
            or held.dtype != like_VD.dtype
            or held.device != like_VD.device
        ):
            self._buffer = held = None  # freed before the larger one is asked for
            self._buffer = held = like_VD.new_empty(count)
        return held[:count].view(rows, like_VD.shape[0])


class Sweep:
    """One pass over the ``R = B * S * H`` targets of a micro-batch, in the order ``[B, S, H]``.

    ``flat_RD`` starts as a copy of the hidden states; each row is read, then overwritten by its
    own gradient, so that the gradient needs no memory of its own. It is ordered ``[H, B, S]``:
    what is handed over is contiguous, or autograd would copy it.
    """

    def __init__(
        self,
        hidden_HBSD: Sequence[Tensor],
        unembedding_VD: Tensor,
        targets_BSH: Tensor,
        valid_BSH: Tensor,
        workspace: Workspace,
    ) -> None:
        B, S, H = self.shape_BSH = tuple(targets_BSH.shape)
        # the products run in float32 even for bf16 inputs: on a CPU it is faster, and exact
        compute = torch.promote_types(unembedding_VD.dtype, torch.float32)
        self.unembedding_VD = unembedding_VD.detach().to(compute)
        self.gradient_VD: Tensor | None = None
        self.flat_RD = torch.stack([x.detach() for x in hidden_HBSD]).view(B * S * H, -1)
        self.rows_R = torch.arange(B * S * H, device=targets_BSH.device)
        self.targets_R = targets_BSH.reshape(-1)
        self.valid_R = valid_BSH.reshape(-1)
        self.workspace = workspace
        if not workspace.exact_counts:  # every row is visited, and 0 times NaN is not 0
            invalid_HBS = ~valid_BSH.permute(2, 0, 1)
            self.flat_RD.masked_fill_(invalid_HBS.reshape(-1, 1), 0)
        self.ce_R = self.unembedding_VD.new_zeros(B * S * H)
        self.weights_R = torch.zeros_like(self.ce_R)
        self.factor_R = torch.zeros_like(self.ce_R)
        self.correct_R = torch.zeros_like(self.valid_R)
        self.measured_R = torch.zeros_like(self.valid_R)
        self.learns_R = torch.zeros_like(self.valid_R)
        self.has_gradient_R = torch.zeros_like(self.valid_R)
        self.gradient_rows = 0

    def ask_for_gradients(
        self,
        gradient_VD: Tensor | None,
        *,
        trained_H: list[bool],
        scale_H: list[float],
        factor: float,
    ) -> None:
        """Say where gradients go and what each head's are multiplied by."""
        W = self.unembedding_VD
        if gradient_VD is not None and (gradient_VD.shape, gradient_VD.dtype) != (W.shape, W.dtype):
            raise ValueError(
                f"the unembedding's gradient must be {W.dtype} {tuple(W.shape)}, "
                f"not {gradient_VD.dtype} {tuple(gradient_VD.shape)}"
            )
        self.gradient_VD = gradient_VD
        for head, (scale, trained) in enumerate(zip(scale_H, trained_H, strict=True)):
            # number by number: a tensor made from a list would make an accelerator wait
            self.factor_R[head :: len(scale_H)] = scale * factor
            self.learns_R[head :: len(scale_H)] = scale > 0 and (trained or gradient_VD is not None)

    # schedules -------------------------------------------------------------------------------

    def known(self, weigh: Weigh) -> None:
        """Weights beforehand: three products for each target that counts, none for the rest.

        A head behind a frozen trunk and unembedding has no use for a gradient: one product.
        """
        self.set_weights(slice(None), weigh(None, slice(0, self.shape_BSH[0])))
        counts_R = self.weights_R != 0
        if self.workspace.exact_counts:
            self.measure(self.where_free(self.rows_R, counts_R & ~self.learns_R))
        self.learn(self.rows_R)

    def token(self, weigh: Weigh) -> None:
        """Weights from all heads of one position: one product, then two per target kept."""
        H = self.shape_BSH[2]
        valid_NH = self.valid_R.view(-1, H)
        positions_N = self.where_free(self.rows_R[: len(valid_NH)], valid_NH.any(1))
        for part in _chunks(positions_N, max(1, self.chunk_rows // H)):
            rows = self.rows_R.view(-1, H)[part].view(-1)
            visited = self.where_free(rows, self.valid_R)
            logits_RV = self.softmax(visited, self.scratch(len(rows)))
            self.set_weights(rows, weigh(self.ce_R[rows].view(1, -1, H), part))
            self.learn_held(visited, logits_RV)

    def sequence(self, weigh: Weigh) -> None:
        """Weights from a whole row of the batch: of its logits, as many are held as fit.

        One product for each target, two more for those kept; a third one for those kept whose
        logits were not held. Short rows are taken several at a time.
        """
        B, S, H = self.shape_BSH
        fit = self.workspace.rows_that_fit(len(self.unembedding_VD), self.ce_R.element_size())
        group = min(B, max(1, fit // (S * H)))
        logits_RV = self.scratch(min(fit, group * S * H))
        for part in (slice(b, min(b + group, B)) for b in range(0, B, group)):
            span = slice(part.start * S * H, part.stop * S * H)
            rows = self.where_free(self.rows_R[span], self.valid_R)
            again, held = rows[: -len(logits_RV)], rows[-len(logits_RV) :]
            self.measure(again)
            for piece in _slices(len(held), self.chunk_rows):
                self.softmax(held[piece], logits_RV[piece])
            self.set_weights(span, weigh(self.ce_R[span].view(-1, S, H), part))
            self.learn_held(held, logits_RV)
            self.learn(again)

    # steps of a schedule ---------------------------------------------------------------------

    def measure(self, rows: Tensor) -> None:
        """Cross-entropy only: one product."""
        for part in _chunks(rows, self.chunk_rows):
            self.softmax(part, self.scratch(self.chunk_rows))

    def learn(self, rows: Tensor) -> None:
        """Cross-entropy and gradients of targets whose weights are set: three products."""
        for part in _chunks(self.where_free(rows, self.wanted_R), self.chunk_rows):
            self.send_back(part, self.softmax(part, self.scratch(self.chunk_rows)))

    def learn_held(self, rows: Tensor, residual_RV: Tensor) -> None:
        """Gradients of targets whose softmax is at hand: two products."""
        if self.workspace.exact_counts:
            kept = self.wanted_R[rows].nonzero().squeeze(1)
            if len(kept) < len(rows):
                _move_up(residual_RV, kept)
                rows = rows[kept]
        for piece in _slices(len(rows), self.chunk_rows):
            self.send_back(rows[piece], residual_RV[piece])

    def softmax(self, rows: Tensor, logits_RV: Tensor) -> Tensor:
        """Fill ``logits_RV`` with softmax minus one-hot, and note cross-entropy and hits."""
        valid_R = self.valid_R[rows]
        x_RD = self.hidden(rows).to(self.unembedding_VD.dtype)
        z_RV = logits_RV[: len(rows)]
        torch.mm(x_RD, self.unembedding_VD.t(), out=z_RV)
        targets_R1 = torch.where(valid_R, self.targets_R[rows], 0).unsqueeze(1)
        z_target_R = z_RV.gather(1, targets_R1).squeeze(1)
        z_max_R = z_RV.amax(1)
        torch.softmax(z_RV, 1, out=z_RV)
        ce_R = z_max_R - z_RV.amax(1).log() - z_target_R
        z_RV.scatter_add_(1, targets_R1, z_RV.new_full((1, 1), -1.0).expand_as(targets_R1))
        self.ce_R[rows] = torch.where(valid_R, ce_R, 0)
        self.correct_R[rows] = (z_target_R >= z_max_R) & valid_R
        self.measured_R[rows] = valid_R
        return z_RV

    def send_back(self, rows: Tensor, residual_RV: Tensor) -> None:
        """Turn softmax minus one-hot into the gradients of hidden states and unembedding."""
        factor_R1 = (self.factor_R[rows] * self.weights_R[rows]).unsqueeze(1)
        if self.gradient_VD is not None:
            scaled_RD = self.hidden(rows).to(self.unembedding_VD.dtype).mul_(factor_R1)
            self.gradient_VD.addmm_(residual_RV.t(), scaled_RD)
        dx_RD = torch.mm(residual_RV, self.unembedding_VD).mul_(factor_R1)
        self.flat_RD[self.places(rows)] = dx_RD.to(self.flat_RD.dtype)
        self.has_gradient_R[rows] = True
        self.gradient_rows += len(rows)

    # bookkeeping -----------------------------------------------------------------------------

    @property
    def chunk_rows(self) -> int:
        """Rows handled by one matrix product."""
        return self.workspace.rows_per_chunk(len(self.unembedding_VD), self.ce_R.element_size())

    @property
    def wanted_R(self) -> Tensor:
        """Where a gradient is wanted: the weight is not 0, and something learns from it."""
        return self.learns_R & (self.weights_R != 0)

    def scratch(self, rows: int) -> Tensor:
        """Uninitialized logits, ``[rows, V]``."""
        return self.workspace.logits(rows, self.unembedding_VD)

    def where_free(self, rows: Tensor, wanted_R: Tensor) -> Tensor:
        """Those of the rows that are wanted, or all of them where counting is not free."""
        return rows[wanted_R[rows]] if self.workspace.exact_counts else rows

    def places(self, rows: Tensor) -> Tensor:
        """Where in ``flat_RD`` these rows are."""
        B, S, H = self.shape_BSH
        return rows % H * (B * S) + rows // H

    def hidden(self, rows: Tensor) -> Tensor:
        """A copy of the hidden states of these rows, read before their gradients replace them."""
        return self.flat_RD[self.places(rows)]

    def set_weights(self, rows: slice | Tensor, weights: Tensor) -> None:
        """Keep the weights of these rows, 0 where not valid, as float32 constants."""
        valid_R = self.valid_R[rows]
        flat_R = weights.detach().reshape(-1).to(self.ce_R.dtype)
        if flat_R.shape != valid_R.shape:
            raise ValueError(
                f"the weighting returned {tuple(weights.shape)} for {len(valid_R)} targets"
            )
        self.weights_R[rows] = torch.where(valid_R, flat_R, 0)

    def hidden_gradients(self) -> Iterable[Tensor]:
        """H tensors ``[B, S, D]``; rows that were never visited have gradient zero."""
        B, S, H = self.shape_BSH
        has_gradient_HN = self.has_gradient_R.view(-1, H).t()
        self.flat_RD.masked_fill_(~has_gradient_HN.reshape(-1, 1), 0)
        return self.flat_RD.view(H, B, S, -1).unbind()


def _slices(count: int, most: int) -> Iterator[slice]:
    """Cut ``range(count)`` into pieces of nearly one length, none longer than ``most``."""
    pieces = -(-count // most)
    for i in range(pieces):
        yield slice(count * i // pieces, count * (i + 1) // pieces)


def _chunks(rows: Tensor, most: int) -> Iterator[Tensor]:
    for piece in _slices(len(rows), most):
        yield rows[piece]


def _move_up(logits_RV: Tensor, kept: Tensor, rows_at_a_time: int = 8) -> None:
    """Close the gaps: row ``kept[i]`` moves to row ``i``.

    Safe in place because ``kept`` rises: place ``i`` is written only after every row before
    ``kept[i]`` was read. A few rows at a time, so that the copy stays small.
    """
    for piece in _slices(len(kept), rows_at_a_time):
        logits_RV[piece] = logits_RV[kept[piece]]
