"""One pass over the targets of a micro-batch: the schedules behind ``fused.fused_mtp_loss``.

A ``Workspace`` holds a few hundred rows of logits, ``Sweep`` fills them chunk by chunk, asks for
weights when the cross-entropy they depend on is there, and turns the same memory into gradients.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wmtp.loss.pieces import MOVED_BYTES, ROWS_MOVED_IN_CACHE, slices
from wmtp.loss.products import add_product, product
from wmtp.loss.softmax_step import NO_TARGET
from wmtp.loss.teacher import Teacher
from wmtp.loss.workspace import Workspace

Scope = Literal["known", "token", "sequence"]
"""What a weight depends on: nothing the loss computes, the cross-entropy of all heads at one
position, or the cross-entropy of a whole row of the batch."""

Weigh = Callable[[Tensor | None, slice | Tensor], Tensor]
"""``weigh(ce, part) -> weights``, float32 of the shape of ``ce``.

``known``: called once with ``(None, slice(0, B))``, returns ``[B, S, H]``.
``token``: ``ce`` is ``[1, n, H]`` and ``part`` says which of the ``B * S`` positions these are.
``sequence``: ``ce`` is ``[b, S, H]`` and ``part`` is the slice of rows of the batch.
"""


@dataclass
class Unembedding:
    """A matrix and the heads that share it.

    Attributes:
        matrix_VD: in the dtype of the products.
        heads: which heads, rising.
        gradient_VD: accumulator that its gradient is added to; None if it is frozen.
        hidden_learns: some of these heads' hidden states want a gradient.
    """

    matrix_VD: Tensor
    heads: list[int]
    gradient_VD: Tensor | None = None
    hidden_learns: bool = False


class Sweep:
    """One pass over the ``R = B * S * H`` targets of a micro-batch, in the order ``[B, S, H]``.

    ``flat_RD`` starts as a copy of the hidden states; each row is read, then overwritten by its
    own gradient, so that the gradient needs no memory of its own. It is ordered ``[H, B, S]``:
    what is handed over is contiguous, or autograd would copy it.

    Where heads have matrices of their own, rows are put in order of their matrix before a
    product, so that each product has one matrix; weights are asked for once all heads are there.
    """

    def __init__(
        self,
        hidden_HBSD: Sequence[Tensor],
        unembeddings: Sequence[Tensor],
        targets_BSH: Tensor,
        valid_BSH: Tensor,
        workspace: Workspace,
    ) -> None:
        B, S, H = self.shape_BSH = tuple(targets_BSH.shape)
        # products run in float32 even for bf16 inputs unless told: on a CPU it is faster, and exact
        compute = torch.promote_types(unembeddings[0].dtype, torch.float32)
        self.unembeddings = _distinct(unembeddings, H, workspace.product_dtype or compute)
        self.flat_RD = torch.stack([x.detach() for x in hidden_HBSD]).view(B * S * H, -1)
        self.rows_R = torch.arange(B * S * H, device=targets_BSH.device)
        self.targets_R = targets_BSH.reshape(-1)
        self.valid_R = valid_BSH.reshape(-1)
        self.workspace = workspace
        if not workspace.exact_counts:  # every row is visited, and 0 times NaN is not 0
            invalid_HBS = ~valid_BSH.permute(2, 0, 1)
            self.flat_RD.masked_fill_(invalid_HBS.reshape(-1, 1), 0)
        self.ce_R = torch.zeros(B * S * H, dtype=compute, device=targets_BSH.device)
        self.teacher: Teacher | None = None
        self.z_loss = 0.0
        self.z_R: Tensor | None = None
        self.weights_R = torch.zeros_like(self.ce_R)
        self.scale_R = torch.zeros_like(self.ce_R)
        self.factor = 1.0  # of all rows, beside each row's scale
        self.all_learn = False
        self.kept_fraction = 1.0
        self.valid_targets: int | None = None
        self.correct_R = torch.zeros_like(self.valid_R)
        self.measured_R = torch.zeros_like(self.valid_R)
        self.learns_R = torch.zeros_like(self.valid_R)
        self.has_gradient_R = torch.zeros_like(self.valid_R)
        self.gradient_rows = 0

    def ask_for_gradients(
        self,
        gradients: Sequence[Tensor | None],
        *,
        trained_H: list[bool],
        scale_H: list[float],
        factor: float,
        kept_fraction: float = 1.0,
        valid_targets: int | None = None,
    ) -> None:
        """Say where gradients go and what each head's, and all of them, are multiplied by.

        Args:
            gradients: one for each matrix given, in its order; None where it is frozen.
            trained_H: whether the head's hidden states want a gradient.
            scale_H: factor of each head.
            factor: common to all.
            kept_fraction: the most that the weighting keeps of a row's valid targets.
            valid_targets: how many there are, where that is known without asking the device.
        """
        # 16-bit products could not hold numbers as small as 1 / N
        self.factor, row_factor = (factor, 1.0) if self.itemsize == 2 else (1.0, factor)
        self.kept_fraction, self.valid_targets = kept_fraction, valid_targets
        self.all_learn = True
        for unembedding in self.unembeddings:
            unembedding.gradient_VD = _common(gradients, unembedding.heads)
            unembedding.hidden_learns = any(trained_H[head] for head in unembedding.heads)
            shape = unembedding.matrix_VD.shape
            gradient_VD = unembedding.gradient_VD
            if gradient_VD is not None and (
                (gradient_VD.shape, gradient_VD.dtype) != (shape, self.ce_R.dtype)
            ):
                raise ValueError(
                    f"the unembedding's gradient must be {self.ce_R.dtype} {tuple(shape)}, "
                    f"not {gradient_VD.dtype} {tuple(gradient_VD.shape)}"
                )
            for head in unembedding.heads:
                # number by number: a tensor made from a list would make an accelerator wait
                learns = scale_H[head] > 0 and (trained_H[head] or gradient_VD is not None)
                self.scale_R[head :: len(scale_H)] = scale_H[head] * row_factor
                self.learns_R[head :: len(scale_H)] = learns
                self.all_learn &= learns

    def ask_the_trunk(self, hidden_BSD: Tensor, share: float) -> None:
        """Give the trunk's own distribution a share in the targets of the heads that learn.

        To be called after ``ask_for_gradients``.

        Args:
            hidden_BSD: of head 0.
            share: ``a``, above 0.
        """
        self.teacher = Teacher(
            hidden_BSD,
            self.unembeddings[0].matrix_VD,
            (self.valid_R & self.learns_R).view(self.shape_BSH),
            share,
            exact_counts=self.workspace.exact_counts,
        )

    def hold_logits_near_zero(self, factor: float) -> None:
        """Let each target cost ``factor`` times the square of ``z``, its log-sum-exp.

        The gradient by the logits is ``(1 + 2 k z) P - onehot``, which is ``1 + 2 k z`` times
        softmax minus one-hot, and ``2 k z`` at the target. The first goes into the row's weight and
        the second is a row of the unembedding: 16-bit logits never have to hold ``2 k z``, which
        their rounding would swallow, and no pass over them is added.

        Args:
            factor: ``k``, above 0.
        """
        self.z_loss = factor
        self.z_R = torch.zeros_like(self.ce_R)

    # schedules -------------------------------------------------------------------------------

    def known(self, weigh: Weigh) -> None:
        """Weights beforehand: three products for each target that counts, none for the rest.

        A head behind a frozen trunk and unembedding has no use for a gradient: one product.
        """
        B, _, _ = self.shape_BSH
        self.set_weights(slice(None), weigh(None, slice(0, B)))
        counts_R = self.weights_R != 0
        if self.workspace.exact_counts:
            self.measure(self.where_free(self.rows_R, counts_R & ~self.learns_R))
        # where nothing can be counted, targets that are measured only must be visited too
        self.learn(self.rows_R, self.most_wanted(B) if self.all_learn else len(self.rows_R))

    def token(self, weigh: Weigh) -> None:
        """Weights from all heads of one position: one product, then two per target kept."""
        H = self.shape_BSH[2]
        valid_NH = self.valid_R.view(-1, H)
        positions_N = self.where_free(self.rows_R[: len(valid_NH)], valid_NH.any(1))
        most = min(self.chunk_positions, max(1, len(positions_N)))
        logits_RV = self.scratch(most * H)  # once: a buffer that grows lives beside the old one
        for part in _chunks(positions_N, most):
            rows = self.rows_R.view(-1, H)[part].view(-1)
            held = self.hold(self.where_free(rows, self.valid_R), logits_RV)
            self.set_weights(rows, weigh(self.ce_R[rows].view(1, -1, H), part))
            self.learn_held(held, len(rows))

    def sequence(self, weigh: Weigh) -> None:
        """Weights from a whole row of the batch: of its logits, as many are held as fit.

        One product for each target, two more for those kept; a third one for those kept whose
        logits were not held. Short rows are taken several at a time.
        """
        B, S, H = self.shape_BSH
        fit = self.rows_that_fit
        group = min(B, max(1, fit // (S * H)))
        logits_RV = self.scratch(min(fit, group * S * H))
        for part in (slice(b, min(b + group, B)) for b in range(0, B, group)):
            span = slice(part.start * S * H, part.stop * S * H)
            rows = self.where_free(self.rows_R[span], self.valid_R)
            split = max(0, len(rows) - len(logits_RV))
            if not self.workspace.exact_counts:
                split = -(-split // H) * H  # whole positions: what ``by_matrix`` can take apart
            again, kept_at_hand = rows[:split], rows[split:]
            self.measure(again)
            held = self.hold(kept_at_hand, logits_RV)
            self.set_weights(span, weigh(self.ce_R[span].view(-1, S, H), part))
            most = self.most_wanted(part.stop - part.start)
            at_hand = 2 * min(len(kept_at_hand), most) + 3 * min(len(again), most)
            if self.workspace.exact_counts or at_hand <= 3 * most:
                self.learn_held(held, most)
                self.learn(again, most)
            else:  # a bound on the sum says little of either part: rather all of the kept anew
                self.learn(rows, most)

    # steps of a schedule ---------------------------------------------------------------------

    def measure(self, rows: Tensor) -> None:
        """Cross-entropy only: one product."""
        for unembedding, own in self.by_matrix(rows):
            for part in _chunks(own, self.chunk_rows):
                self.softmax(unembedding, part, self.scratch(self.chunk_rows), taught=False)

    def learn(self, rows: Tensor, most: int) -> None:
        """Cross-entropy and gradients of targets whose weights are set: three products.

        ``most`` bounds how many of them want a gradient, for where that cannot be counted.
        """
        rows = self.where_free(rows, self.wanted_R)
        bounded = not self.workspace.exact_counts and most < len(rows)
        if bounded:
            rows = rows[_places_of(self.wanted_R[rows], most)]
        for unembedding, own in self.by_matrix(rows):
            for part in _chunks(own, self.chunk_rows):
                logits_RV = self.scratch(self.chunk_rows)
                residual_RV = self.softmax(unembedding, part, logits_RV, gaps=bounded)
                self.send_back(unembedding, part, residual_RV)

    def hold(self, rows: Tensor, logits_RV: Tensor) -> list[tuple[Unembedding, Tensor, Tensor]]:
        """Softmax of all these rows, kept: for each matrix, its rows and where they are held."""
        held, start = [], 0
        for unembedding, own in self.by_matrix(rows):
            residual_RV = logits_RV[start : start + len(own)]
            for piece in slices(len(own), self.chunk_rows):
                self.softmax(unembedding, own[piece], residual_RV[piece])
            held.append((unembedding, own, residual_RV))
            start += len(own)
        return held

    def learn_held(self, held: list[tuple[Unembedding, Tensor, Tensor]], most: int) -> None:
        """Gradients of targets whose softmax is at hand: two products."""
        for unembedding, rows, residual_RV in held:
            wanted_R = self.wanted_R[rows]
            if self.workspace.exact_counts:
                kept = wanted_R.nonzero().squeeze(1)
                step = ROWS_MOVED_IN_CACHE
            else:
                kept = _places_of(wanted_R, most) if most < len(rows) else self.rows_R[: len(rows)]
                step = max(1, MOVED_BYTES // (self.vocabulary * self.itemsize))
            if len(kept) < len(rows):
                _move_up(residual_RV, kept, step)
                rows = rows[kept]
            for piece in slices(len(rows), self.chunk_rows):
                self.send_back(unembedding, rows[piece], residual_RV[piece])

    def softmax(
        self,
        unembedding: Unembedding,
        rows: Tensor,
        logits_RV: Tensor,
        *,
        taught: bool = True,
        gaps: bool = False,
    ) -> Tensor:
        """Fill ``logits_RV`` with softmax minus target, and note cross-entropy and hits.

        Args:
            unembedding: of all these rows.
            rows: which targets.
            logits_RV: overwritten, as many rows as needed.
            taught: the target is shared with the teacher, if there is one.
            gaps: rows may be missing between these although shapes are fixed.
        """
        valid_R = self.valid_R[rows]
        matrix_VD = unembedding.matrix_VD
        x_RD = self.hidden(rows).to(matrix_VD.dtype)
        z_RV = logits_RV[: len(rows)]
        torch.mm(x_RD, matrix_VD.t(), out=z_RV)
        targets_R = self.targets_R[rows].masked_fill(~valid_R, NO_TARGET)
        step = self.workspace.softmax_step
        z_target_R1 = None
        if self.z_R is not None:  # before the step, which overwrites the logits
            z_target_R1 = z_RV.gather(1, targets_R.clamp(min=0).unsqueeze(1))
        if self.teacher is None or not taught:
            self.ce_R[rows], self.correct_R[rows] = step(z_RV, targets_R)
        else:
            self.ce_R[rows], self.correct_R[rows] = self.teacher.softmax_step(
                z_RV,
                targets_R,
                rows,
                self.workspace.logits(self.reserved_rows, matrix_VD),
                step,
                contiguous=len(self.unembeddings) == 1 and not gaps,
            )
        if self.z_R is not None and z_target_R1 is not None:
            z_R = self.ce_R[rows] + z_target_R1.squeeze(1).to(self.ce_R.dtype)
            self.z_R[rows] = z_R.masked_fill(~valid_R, 0)
        self.measured_R[rows] = valid_R
        return z_RV

    def send_back(self, unembedding: Unembedding, rows: Tensor, residual_RV: Tensor) -> None:
        """Turn softmax minus target into the gradients of hidden states and unembedding."""
        matrix_VD = unembedding.matrix_VD
        weight_R1 = (self.scale_R[rows] * self.weights_R[rows]).unsqueeze(1)
        at_target_R1 = None
        if self.z_R is not None:
            at_target_R1 = weight_R1 * (2 * self.z_loss * self.z_R[rows]).unsqueeze(1)
            weight_R1 = weight_R1 + at_target_R1
            targets_R = self.targets_R[rows].masked_fill(~self.valid_R[rows], 0)
        if unembedding.gradient_VD is not None:
            x_RD = self.hidden(rows).to(self.ce_R.dtype)
            if at_target_R1 is not None:  # accumulating puts are deterministic, index_add_ is not
                added_RD = x_RD * (at_target_R1 * self.factor)
                unembedding.gradient_VD.index_put_((targets_R,), added_RD, accumulate=True)
            weighted_RD = x_RD.mul_(weight_R1)
            add_product(
                unembedding.gradient_VD,
                residual_RV.t(),
                weighted_RD.to(matrix_VD.dtype),
                self.factor,
            )
        if unembedding.hidden_learns:
            dx_RD = product(residual_RV, matrix_VD, self.ce_R.dtype).mul_(weight_R1 * self.factor)
            if at_target_R1 is not None:
                target_RD = matrix_VD[targets_R].to(dx_RD.dtype)
                dx_RD.addcmul_(target_RD, at_target_R1 * self.factor)
            self.flat_RD[self.places(rows)] = dx_RD.to(self.flat_RD.dtype)
            self.has_gradient_R.index_fill_(0, rows, True)
        self.gradient_rows += len(rows)

    # bookkeeping -----------------------------------------------------------------------------

    @property
    def vocabulary(self) -> int:
        """V, the same for every matrix."""
        return len(self.unembeddings[0].matrix_VD)

    @property
    def itemsize(self) -> int:
        """Bytes of one logit."""
        return self.unembeddings[0].matrix_VD.element_size()

    @property
    def chunk_rows(self) -> int:
        """Rows handled by one matrix product; a teacher may need as many again."""
        rows = self.workspace.rows_per_chunk(self.vocabulary, self.itemsize)
        if self.teacher is None:
            return rows
        return max(1, min(rows, self.workspace.rows_that_fit(self.vocabulary, self.itemsize) // 2))

    @property
    def reserved_rows(self) -> int:
        """Rows at the beginning of the workspace that are the teacher's."""
        return 0 if self.teacher is None else self.chunk_rows

    @property
    def rows_that_fit(self) -> int:
        """Rows of logits that can be held at a time."""
        fit = self.workspace.rows_that_fit(self.vocabulary, self.itemsize)
        return max(1, fit - self.reserved_rows)

    @property
    def chunk_positions(self) -> int:
        """Positions whose heads' logits are held together: as many rows of each matrix as pay."""
        H = self.shape_BSH[2]
        if len(self.unembeddings) == 1:
            return max(1, self.chunk_rows // H)
        return max(1, min(self.workspace.chunk_rows, self.rows_that_fit // H))

    @property
    def wanted_R(self) -> Tensor:
        """Where a gradient is wanted: the weight is not 0, and something learns from it."""
        return self.learns_R & (self.weights_R != 0)

    def most_wanted(self, batch_rows: int) -> int:
        """Bound on the targets of so many rows of the batch that can want a gradient.

        Where heads have matrices of their own, a bound over all heads says nothing of one.
        """
        B, S, H = self.shape_BSH
        if len(self.unembeddings) > 1:
            return batch_rows * S * H
        most = batch_rows * _share(S * H, 1, self.kept_fraction)
        if self.valid_targets is not None:
            wanted = _share(self.valid_targets, B, self.kept_fraction)
            most = min(most, self.workspace.rounded(wanted, B * S * H))
        return most

    def scratch(self, rows: int) -> Tensor:
        """Uninitialized logits, ``[rows, V]``."""
        reserved = self.reserved_rows
        matrix_VD = self.unembeddings[0].matrix_VD
        return self.workspace.logits(reserved + rows, matrix_VD)[reserved:]

    def where_free(self, rows: Tensor, wanted_R: Tensor) -> Tensor:
        """Those of the rows that are wanted, or all of them where counting is not free."""
        return rows[wanted_R[rows]] if self.workspace.exact_counts else rows

    def by_matrix(self, rows: Tensor) -> Iterator[tuple[Unembedding, Tensor]]:
        """Each matrix and those of the rows that are its own.

        Where counting is not free, the rows must be all heads of some positions.
        """
        H = self.shape_BSH[2]
        for unembedding in self.unembeddings:
            if len(self.unembeddings) == 1:
                yield unembedding, rows
            elif self.workspace.exact_counts:
                head_R = rows % H
                own = torch.cat([(head_R == head).nonzero() for head in unembedding.heads])
                yield unembedding, rows[own.squeeze(1).sort().values]
            else:
                rows_NH = rows.view(-1, H)
                yield unembedding, torch.cat([rows_NH[:, head] for head in unembedding.heads])

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
        self.weights_R[rows] = flat_R.masked_fill(~valid_R, 0)

    @property
    def loss_R(self) -> Tensor:
        """What each target costs, before its weight; without teacher and z-loss its ce alone."""
        if self.z_R is not None:
            return self.ce_R + self.z_loss * self.z_R.square()
        return self.ce_R if self.teacher is None else self.ce_R + self.teacher.excess_R

    def hidden_gradients(self) -> Iterable[Tensor]:
        """H tensors ``[B, S, D]``; rows that were never visited have gradient zero."""
        B, S, H = self.shape_BSH
        has_gradient_HN = self.has_gradient_R.view(-1, H).t()
        self.flat_RD.masked_fill_(~has_gradient_HN.reshape(-1, 1), 0)
        return self.flat_RD.view(H, B, S, -1).unbind()


def _distinct(
    unembeddings: Sequence[Tensor], horizon: int, dtype: torch.dtype
) -> list[Unembedding]:
    """Each matrix once, with the heads that it serves; heads of one object share it."""
    if len(unembeddings) not in (1, horizon):
        raise ValueError(
            f"{horizon} heads need 1 or {horizon} unembeddings, not {len(unembeddings)}"
        )
    found = {(tuple(matrix.shape), matrix.dtype) for matrix in unembeddings}
    if len(found) > 1:
        raise ValueError(
            f"unembeddings must have one shape and dtype, not {sorted(map(str, found))}"
        )
    owners: dict[int, Unembedding] = {}
    for head in range(horizon):
        matrix = unembeddings[head % len(unembeddings)]
        if id(matrix) not in owners:
            owners[id(matrix)] = Unembedding(matrix.detach().to(dtype), [])
        owners[id(matrix)].heads.append(head)
    return list(owners.values())


def _common(gradients: Sequence[Tensor | None], heads: list[int]) -> Tensor | None:
    """The one accumulator of heads that share a matrix."""
    own = [gradients[head % len(gradients)] for head in heads]
    if any(gradient is not own[0] for gradient in own):
        raise ValueError(f"heads {heads} share an unembedding, but not the tensor of its gradient")
    return own[0]


def _share(targets: int, rows: int, fraction: float) -> int:
    """Bound on what is kept of so many targets in so many rows, each row rounding up."""
    return targets if fraction >= 1 else min(targets, math.floor(fraction * targets) + rows)


def _places_of(wanted_R: Tensor, most: int) -> Tensor:
    """Rising places of ``most`` entries, all that are wanted among them; no count is read back."""
    torch._assert_async(
        wanted_R.sum() <= most, "more targets have a weight than the weighting's kept_fraction says"
    )
    wanted_first = wanted_R.int().argsort(descending=True, stable=True)
    return wanted_first[:most].sort().values


def _chunks(rows: Tensor, most: int) -> Iterator[Tensor]:
    for piece in slices(len(rows), most):
        yield rows[piece]


def _move_up(logits_RV: Tensor, kept: Tensor, rows_at_a_time: int) -> None:
    """Close the gaps: row ``kept[i]`` moves to row ``i``.

    Safe in place because ``kept`` rises: place ``i`` is written only after every row before
    ``kept[i]`` was read. A few rows at a time, so that the copy stays small.
    """
    for piece in slices(len(kept), rows_at_a_time):
        logits_RV[piece] = logits_RV[kept[piece]]
