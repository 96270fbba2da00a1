"""The weighted multi-token loss: the plain formula, and one pass that never holds all logits.

``weighted_mtp_loss`` is the definition. ``fused_mtp_loss`` computes the same number and the same
gradients from the heads' hidden states, a few hundred rows of logits at a time: three matrix
products per target, two where the unembedding is frozen, none where the weight is zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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


def weighted_mtp_loss(
    ce_BSH: Tensor,
    weights_BSH: Tensor,
    valid_BSH: Tensor,
    valid_count: Tensor | float,
    head_scale_H: Tensor | None = None,
) -> Tensor:
    """Sum of weight times cross-entropy over every valid target, per valid target.

        L = (1 / N) * sum over (b, s, h) valid of  c[h] * w[b, s, h] * ce[b, s, h]

    Head ``h`` at position ``s`` predicts token ``s + 1 + h``; the last ``h + 1`` positions of a
    sequence have no such token and are not valid. ``N`` is passed in, and not counted here,
    because one optimizer step spans several micro-batches and ranks: dividing each by its own
    count would weigh a short batch more than a long one. Weights are not renormalized, so a
    token given weight 2 pulls twice as hard; with all weights 1 this is plain MTP.

    Args:
        ce_BSH: cross-entropy of each target in nats, finite wherever valid.
        weights_BSH: importance of each target, no gradient, at least 0.
        valid_BSH: True where the target exists and is to be learned.
        valid_count: ``N``, the valid targets of the whole optimizer step over all ranks, each
            counted with its head's scale.
        head_scale_H: ``c``, one factor per head; 1 for every head when absent.

    Returns:
        Scalar in nats per target. Zero, with zero gradient, if nothing is valid.

    Raises:
        ValueError: the three tensors differ in shape.

    Source:
        Gloeckle et al. 2024 (arXiv:2404.19737), section 2, with the weight w added.

    Example:
        Two positions, two heads; the second head runs off the end at the last position.

        >>> ce = torch.tensor([[[2.0, 4.0], [1.0, 9.0]]])
        >>> valid = torch.tensor([[[True, True], [True, False]]])
        >>> weights = torch.tensor([[[1.0, 0.5], [3.0, 7.0]]])
        >>> weighted_mtp_loss(ce, weights, valid, valid_count=3)  # (2 + 2 + 3) / 3
        tensor(2.3333)
    """
    if not ce_BSH.shape == weights_BSH.shape == valid_BSH.shape:
        shapes = [tuple(t.shape) for t in (ce_BSH, weights_BSH, valid_BSH)]
        raise ValueError(f"ce, weights and valid must have one shape, not {shapes}")
    terms_BSH = torch.where(valid_BSH, ce_BSH, 0) * weights_BSH
    if head_scale_H is not None:
        terms_BSH = terms_BSH * head_scale_H
    count = torch.as_tensor(valid_count, device=ce_BSH.device)
    return terms_BSH.sum() / count.clamp(min=torch.finfo(torch.float32).tiny)


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


@dataclass(frozen=True)
class LossOutput:
    """What one micro-batch gave. All but ``loss`` are constants for autograd.

    Attributes:
        loss: scalar float32; add it to others and call ``backward()``, but do not multiply it
            (see ``fused_mtp_loss``).
        ce_BSH: cross-entropy in nats, float32, 0 where it was not measured.
        weights_BSH: the weights used, float32, 0 where not valid.
        measured_BSH: True where ``ce_BSH`` holds a measurement: valid, and not known beforehand
            to have weight 0.
        correct_BSH: True where the target has the largest logit.
        gradient_rows: rows that went through the gradient's matrix products.
    """

    loss: Tensor
    ce_BSH: Tensor
    weights_BSH: Tensor
    measured_BSH: Tensor
    correct_BSH: Tensor
    gradient_rows: int


def fused_mtp_loss(
    hidden_HBSD: Sequence[Tensor],
    unembedding_VD: Tensor,
    targets_BSH: Tensor,
    valid_BSH: Tensor,
    weigh: Weigh,
    scope: Scope,
    *,
    valid_count: float,
    head_scale: Sequence[float] | None = None,
    unembedding_gradient_VD: Tensor | None = None,
    workspace: Workspace | None = None,
    loss_scale: float = 1.0,
) -> LossOutput:
    """``weighted_mtp_loss`` and its gradients in one pass over the targets.

    For a chunk of rows ``X`` (targets, all heads mixed) and logits ``Z = X @ W.T``::

        m = rowmax(Z);  P = softmax(Z)                      in place
        ce = m - log(rowmax(P)) - Z[target]                 exact: rowmax(P) >= 1/V
        P[target] -= 1
        dX = f * (P @ W);   dW += P.T @ (f * X)             f = loss_scale * c * w / N

    The weight touches ``[rows, D]`` only, never ``[rows, V]``. Gradients are computed here, in
    the forward pass: those of the hidden states are handed over in ``backward()``; that of the
    unembedding is **added to** ``unembedding_gradient_VD`` (pass ``W.grad``), so that no second
    ``[V, D]`` tensor exists. Therefore the returned loss must reach ``backward()`` with
    gradient 1, which is checked: scale through ``loss_scale``, divide through ``valid_count``.

    Args:
        hidden_HBSD: H tensors ``[B, S, D]``, normed, ready for the unembedding.
        unembedding_VD: the matrix shared by the heads.
        targets_BSH: int64, token ``s + 1 + h``; any value where not valid.
        valid_BSH: True where the target exists and is to be learned.
        weigh: gives the weights, see ``Weigh``.
        scope: what the weights depend on; decides the schedule.
        valid_count: ``N`` of the whole optimizer step, each target counted with its head's scale.
        head_scale: ``c``, one factor per head, at least 0; 1 when absent.
        unembedding_gradient_VD: float32 accumulator, or None if the unembedding is frozen.
        workspace: scratch memory; keep one for the run.
        loss_scale: factor of the gradients alone (fp16 loss scaling), not of ``loss``.

    Raises:
        ValueError: shapes do not agree, or no hidden state wants a gradient.

    Source:
        The idea of gradients in the forward pass: Hsu et al. 2024 (arXiv:2410.10989).
    """
    B, S, H = targets_BSH.shape
    if len(hidden_HBSD) != H or any(x.shape[:2] != (B, S) for x in hidden_HBSD):
        found = [tuple(x.shape) for x in hidden_HBSD]
        raise ValueError(f"targets {(B, S, H)} need {H} hidden states [{B}, {S}, D], not {found}")
    if valid_BSH.shape != targets_BSH.shape:
        raise ValueError(f"valid {tuple(valid_BSH.shape)} and targets {(B, S, H)} differ")
    if head_scale is not None and len(head_scale) != H:
        raise ValueError(f"head_scale has {len(head_scale)} factors for {H} heads")
    if not any(x.requires_grad for x in hidden_HBSD):
        raise ValueError("no hidden state requires a gradient: use measure_ce to measure only")
    scale = [1.0] * H if head_scale is None else list(head_scale)
    sweep = _Sweep(
        hidden_HBSD, unembedding_VD, targets_BSH, valid_BSH, workspace or Workspace(), scale
    )
    sweep.gradient_VD = unembedding_gradient_VD
    if unembedding_gradient_VD is None:
        trained_H = torch.tensor([x.requires_grad for x in hidden_HBSD], device=targets_BSH.device)
        sweep.trained_R = trained_H.repeat(B * S)
    sweep.row_factor_R.mul_(loss_scale / max(valid_count, torch.finfo(torch.float32).tiny))
    run = {"known": sweep.known, "token": sweep.token, "sequence": sweep.sequence}[scope]
    loss: Tensor = _HandOver.apply(  # type: ignore[no-untyped-call]
        sweep, lambda: run(weigh), loss_scale, *hidden_HBSD
    )
    return LossOutput(
        loss=loss,
        ce_BSH=sweep.ce_R.view(B, S, H),
        weights_BSH=sweep.weights_R.view(B, S, H),
        measured_BSH=sweep.measured_R.view(B, S, H),
        correct_BSH=sweep.correct_R.view(B, S, H),
        gradient_rows=sweep.gradient_rows,
    )


@torch.no_grad()
def measure_ce(
    hidden_HBSD: Sequence[Tensor],
    unembedding_VD: Tensor,
    targets_BSH: Tensor,
    valid_BSH: Tensor,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every valid target and whether it was the likeliest: one product a row.

    Returns:
        ``(ce_BSH, correct_BSH)``: float32 nats and bool, both 0 where not valid.
    """
    sweep = _Sweep(
        hidden_HBSD,
        unembedding_VD,
        targets_BSH,
        valid_BSH,
        workspace or Workspace(),
        [1.0] * targets_BSH.shape[-1],
    )
    sweep.measure(sweep.rows_where(sweep.valid_R))
    return sweep.ce_R.view_as(targets_BSH), sweep.correct_R.view_as(targets_BSH)


class _HandOver(torch.autograd.Function):
    """A scalar whose gradients are already known; backward gives them away."""

    @staticmethod
    def forward(
        ctx: Any,
        sweep: "_Sweep",
        run: Callable[[], None],
        loss_scale: float,
        *hidden_HBSD: Tensor,
    ) -> Tensor:
        run()
        ctx.sweep = sweep
        terms = sweep.row_factor_R * sweep.weights_R * sweep.ce_R
        return terms.sum() / loss_scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sweep, ctx.sweep = ctx.sweep, None
        if sweep is None:
            raise RuntimeError("this loss was already sent backward; its gradients are handed over")
        torch._assert_async(  # no host sync on an accelerator
            gradients[0] == 1,
            "fused_mtp_loss must reach backward() with gradient 1: use loss_scale and valid_count",
        )
        return (None, None, None, *sweep.hidden_gradients())


class _Sweep:
    """One pass over the ``R = B * S * H`` targets of a micro-batch, position by position.

    ``flat_RD`` starts as a copy of the hidden states; each row is read, then overwritten by its
    own gradient, so that the gradient needs no memory of its own.
    """

    def __init__(
        self,
        hidden_HBSD: Sequence[Tensor],
        unembedding_VD: Tensor,
        targets_BSH: Tensor,
        valid_BSH: Tensor,
        workspace: Workspace,
        head_scale: list[float],
    ) -> None:
        B, S, H = self.shape_BSH = tuple(targets_BSH.shape)
        rows = B * S * H
        # the products run in float32 even for bf16 inputs: on a CPU it is faster, and exact
        compute = torch.promote_types(unembedding_VD.dtype, torch.float32)
        self.unembedding_VD = unembedding_VD.detach().to(compute)
        self.gradient_VD: Tensor | None = None
        self.flat_RD = torch.stack([x.detach() for x in hidden_HBSD], 2).view(rows, -1)
        self.targets_R = targets_BSH.reshape(rows)
        self.valid_R = valid_BSH.reshape(rows)
        self.workspace = workspace
        self.ce_R = self.unembedding_VD.new_zeros(rows)
        self.weights_R = torch.zeros_like(self.ce_R)
        self.correct_R = torch.zeros_like(self.valid_R)
        self.measured_R = torch.zeros_like(self.valid_R)
        self.row_factor_R = self.ce_R.new_tensor(head_scale).repeat(B * S)
        self.trained_R = torch.ones_like(self.valid_R)
        self.has_gradient_R = torch.zeros_like(self.valid_R)
        self.gradient_rows = 0

    # schedules -------------------------------------------------------------------------------

    def known(self, weigh: Weigh) -> None:
        """Weights beforehand: three products for each target that counts, none for the rest."""
        self.set_weights(slice(None), weigh(None, slice(0, self.shape_BSH[0])))
        self.learn_weighted()

    def token(self, weigh: Weigh) -> None:
        """Weights from all heads of one position: three products, positions kept whole."""
        H = self.shape_BSH[2]
        valid_NH = self.valid_R.view(-1, H)
        positions = self.rows_where(valid_NH.any(1))
        per_chunk = max(1, self.chunk_rows // H)
        for part in _chunks(positions, len(valid_NH), per_chunk):
            rows = _rows_of_positions(part, H)
            logits = self.softmax(rows, self.scratch(per_chunk * H))
            self.set_weights(rows, weigh(self.ce_R[rows].view(1, -1, H), part))
            self.send_back(rows, logits)

    def sequence(self, weigh: Weigh) -> None:
        """Weights from a whole row: its logits are kept if they fit, else computed twice."""
        B, S, H = self.shape_BSH
        fit = self.workspace.rows_that_fit(len(self.unembedding_VD), self.ce_R.element_size())
        if fit < S * H:
            self.measure(self.rows_where(self.valid_R))
            self.set_weights(slice(None), weigh(self.ce_R.view(B, S, H), slice(0, B)))
            self.learn_weighted()
            return
        group = min(B, fit // (S * H))
        for first in range(0, B, group):
            part = slice(first, min(first + group, B))
            self.learn_group(weigh, part)

    def learn_group(self, weigh: Weigh, part: slice) -> None:
        """A few rows of the batch whose logits all fit: one product, then two per kept target."""
        _, S, H = self.shape_BSH
        everything = slice(part.start * S * H, part.stop * S * H)
        rows = self.rows_where(self.valid_R[everything], offset=everything.start)
        count = _length(rows)
        logits_RV = self.scratch(everything.stop - everything.start)
        for piece in _slices(count, self.chunk_rows):
            self.softmax(_pick(rows, piece), logits_RV[piece])
        ce_BSH = self.ce_R[everything].view(-1, S, H)
        self.set_weights(everything, weigh(ce_BSH, part))
        if self.workspace.exact_counts:
            kept = (self.trained_R[rows] & (self.weights_R[rows] != 0)).nonzero().squeeze(1)
            if len(kept) < count:
                _move_up(logits_RV, kept)
                rows = kept + rows.start if isinstance(rows, slice) else rows[kept]
                count = len(kept)
        for piece in _slices(count, self.chunk_rows):
            self.send_back(_pick(rows, piece), logits_RV[piece])

    # one chunk -------------------------------------------------------------------------------

    def measure(self, rows: slice | Tensor) -> None:
        """Cross-entropy only: one product."""
        for part in _chunks(rows, len(self.ce_R), self.chunk_rows):
            self.softmax(part, self.scratch(self.chunk_rows))

    def learn_weighted(self) -> None:
        """Cross-entropy and gradients of targets whose weights are set: three products.

        A head behind a frozen trunk and unembedding has no use for a gradient: one product.
        """
        counts_R = self.weights_R != 0
        if self.workspace.exact_counts:
            self.measure(self.rows_where(counts_R & ~self.trained_R & ~self.measured_R))
        rows = self.rows_where(counts_R & self.trained_R)
        for part in _chunks(rows, len(self.ce_R), self.chunk_rows):
            self.send_back(part, self.softmax(part, self.scratch(self.chunk_rows)))

    def softmax(self, rows: slice | Tensor, logits_RV: Tensor) -> Tensor:
        """Fill ``logits_RV`` with softmax minus one-hot, and note cross-entropy and hits."""
        x_RD = self.flat_RD[rows].to(self.unembedding_VD.dtype)
        z_RV = logits_RV[: len(x_RD)]
        torch.mm(x_RD, self.unembedding_VD.t(), out=z_RV)
        valid_R = self.valid_R[rows]
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

    def send_back(self, rows: slice | Tensor, residual_RV: Tensor) -> None:
        """Turn softmax minus one-hot into the gradients of hidden states and unembedding."""
        factor_R1 = (self.row_factor_R[rows] * self.weights_R[rows]).unsqueeze(1)
        x_RD = self.flat_RD[rows]
        if self.gradient_VD is not None:
            scaled_RD = x_RD.to(self.unembedding_VD.dtype) * factor_R1
            self.gradient_VD.addmm_(residual_RV.t(), scaled_RD)
        if isinstance(rows, slice) and x_RD.dtype == self.unembedding_VD.dtype:
            torch.mm(residual_RV, self.unembedding_VD, out=x_RD).mul_(factor_R1)
        else:
            dx_RD = torch.mm(residual_RV, self.unembedding_VD).mul_(factor_R1)
            self.flat_RD[rows] = dx_RD.to(self.flat_RD.dtype)
        self.has_gradient_R[rows] = True
        self.gradient_rows += len(residual_RV)

    # bookkeeping -----------------------------------------------------------------------------

    @property
    def chunk_rows(self) -> int:
        return self.workspace.rows_per_chunk(len(self.unembedding_VD), self.ce_R.element_size())

    def scratch(self, rows: int) -> Tensor:
        return self.workspace.logits(rows, self.unembedding_VD)

    def rows_where(self, wanted_R: Tensor, offset: int = 0) -> slice | Tensor:
        """Rows to visit; all of them, as a slice, where counting is not free."""
        everything = slice(offset, offset + len(wanted_R))
        if not self.workspace.exact_counts or bool(wanted_R.all()):
            return everything
        return wanted_R.nonzero().squeeze(1) + offset

    def set_weights(self, rows: slice | Tensor, weights: Tensor) -> None:
        """Keep the weights of these rows, 0 where not valid, as float32 constants."""
        valid_R = self.valid_R[rows]
        flat_R = weights.detach().reshape(-1).to(self.ce_R.dtype)
        if flat_R.shape != valid_R.shape:
            raise ValueError(
                f"the weighting returned {tuple(weights.shape)} for {len(valid_R)} targets"
            )
        self.weights_R[rows] = torch.where(valid_R, flat_R, 0)

    def hidden_gradients(self) -> list[Tensor]:
        """H tensors ``[B, S, D]``; rows that were never visited have gradient zero."""
        B, S, H = self.shape_BSH
        self.flat_RD.masked_fill_(~self.has_gradient_R.unsqueeze(1), 0)
        return list(self.flat_RD.view(B, S, H, -1).unbind(2))


def _length(rows: slice | Tensor) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _pick(rows: slice | Tensor, piece: slice) -> slice | Tensor:
    """The rows at places ``piece`` of a list of rows."""
    if isinstance(rows, slice):
        return slice(rows.start + piece.start, rows.start + piece.stop)
    return rows[piece]


def _chunks(rows: slice | Tensor, total: int, size: int) -> Iterator[slice | Tensor]:
    if isinstance(rows, slice):
        rows = slice(*rows.indices(total)[:2])
    for piece in _slices(_length(rows), size):
        yield _pick(rows, piece)


def _rows_of_positions(part: slice | Tensor, heads: int) -> slice | Tensor:
    if isinstance(part, slice):
        return slice(part.start * heads, part.stop * heads)
    return (part.unsqueeze(1) * heads + torch.arange(heads, device=part.device)).view(-1)


def _move_up(logits_RV: Tensor, kept: Tensor, rows_at_a_time: int = 32) -> None:
    """Close the gaps: row ``kept[i]`` moves to row ``i``.

    Safe in place because ``kept`` rises: place ``i`` is written only after every row before
    ``kept[i]`` was read. A few rows at a time, so that the copy stays small.
    """
    for piece in _slices(len(kept), rows_at_a_time):
        logits_RV[piece] = logits_RV[kept[piece]]
