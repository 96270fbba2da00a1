"""The trunk's own distribution as a target of the further heads, a chunk of targets at a time."""

import torch
from torch import Tensor

from wmtp.loss.pieces import MOVED_BYTES, ROWS_MOVED_IN_CACHE, slices
from wmtp.loss.softmax_step import SoftmaxStep


class Teacher:
    """Head 0 at ``s + h`` tells head ``h`` at ``s`` how likely each token is at ``s + 1 + h``.

    Not taught are head 0 itself and the last ``h`` positions of a row, whose teacher would stand
    behind it: their target is the label alone.

    Args:
        hidden_BSD: of head 0.
        matrix_VD: head 0's unembedding, in the dtype of the products.
        wanted_BSH: True where a head may be taught.
        share: ``a``, of the teacher in the target; the rest is the label's.
        exact_counts: as in ``Workspace``.

    Attributes:
        excess_R: what each target costs more than its label alone, 0 before ``softmax_step``.
    """

    def __init__(
        self,
        hidden_BSD: Tensor,
        matrix_VD: Tensor,
        wanted_BSH: Tensor,
        share: float,
        *,
        exact_counts: bool,
    ) -> None:
        _, S, self.horizon = wanted_BSH.shape
        self.hidden_ND = hidden_BSD.detach().flatten(0, 1)
        self.matrix_VD = matrix_VD
        self.share = share
        self.exact_counts = exact_counts
        dtype = torch.promote_types(matrix_VD.dtype, torch.float32)
        self.excess_R = torch.zeros(wanted_BSH.numel(), dtype=dtype, device=wanted_BSH.device)
        rows_R = torch.arange(wanted_BSH.numel(), device=wanted_BSH.device)
        head_R, own_position_R = rows_R % self.horizon, rows_R // self.horizon
        within_R = (head_R > 0) & (own_position_R % S + head_R < S)
        self.taught_R = wanted_BSH.reshape(-1) & within_R
        self.position_R = own_position_R + head_R * self.taught_R
        asked_N = torch.zeros(len(self.hidden_ND), dtype=torch.int32, device=rows_R.device)
        self.asked_N = asked_N.index_add_(0, self.position_R, self.taught_R.int()) > 0

    def softmax_step(
        self,
        logits_RV: Tensor,
        targets_R: Tensor,
        rows: Tensor,
        scratch_RV: Tensor,
        step: SoftmaxStep,
        *,
        contiguous: bool,
    ) -> tuple[Tensor, Tensor]:
        """Turn logits into softmax minus target, in place, where the target is shared.

        With ``q`` the softmax, ``p`` the teacher's and ``y`` the label::

            ce = -log q[y]
            (1 - a) * ce - a * sum_v p[v] * log q[v]  =  ce + a * (Z[y] - sum_v p[v] * Z[v])

        whose gradient by ``Z`` is ``q - (1 - a) * onehot(y) - a * p``.

        Args:
            logits_RV: overwritten.
            targets_R: as in ``softmax_minus_one_hot``.
            rows: which of all targets these are.
            scratch_RV: memory for the teacher's own logits, as many rows.
            step: does what is done without a teacher.
            contiguous: the rows follow each other without a gap.

        Returns:
            ``(ce_R, correct_R)``, of the labels, as ``step`` does.
        """
        p_QV, place_R = self.distributions(rows, scratch_RV, contiguous=contiguous)
        narrow = logits_RV.element_size() == 2
        if self.exact_counts:
            at_a_time = ROWS_MOVED_IN_CACHE
        else:
            at_a_time = max(1, MOVED_BYTES // (4 * logits_RV.shape[1]))
        parts = []
        for piece in slices(len(rows), at_a_time):
            z_RV, p_RV = logits_RV[piece], p_QV[place_R[piece]]
            taught_R1 = self.taught_R[rows[piece]].unsqueeze(1)
            targets_R1 = targets_R[piece].clamp(min=0).unsqueeze(1)
            further_R1 = _mean_distance(p_RV, z_RV, targets_R1) * taught_R1
            ce_R, correct_R = step(z_RV, targets_R[piece])
            z_RV.addcmul_(p_RV, taught_R1.to(z_RV.dtype), value=-self.share)
            if narrow:  # softmax minus 1, rounded to 16 bits, has lost what is left without the 1
                rest_R1 = self.share * (1 - p_RV.gather(1, targets_R1).float()) * taught_R1
                at_target_R1 = ce_R.neg().expm1().unsqueeze(1) + rest_R1
                z_RV.scatter_(1, targets_R1, at_target_R1.to(z_RV.dtype))
            else:
                z_RV.scatter_add_(1, targets_R1, self.share * taught_R1.to(z_RV.dtype))
            self.excess_R[rows[piece]] = self.share * further_R1.squeeze(1)
            parts.append((ce_R, correct_R))
        ce_R, correct_R = (torch.cat(part) for part in zip(*parts, strict=True))
        return ce_R, correct_R

    def distributions(
        self, rows: Tensor, scratch_RV: Tensor, *, contiguous: bool
    ) -> tuple[Tensor, Tensor]:
        """Each position that teaches one of these rows, once where that can be told.

        Returns:
            ``(p_QV, place_R)``: the distributions, in ``scratch_RV``, and where each row's is. A
            row that is not taught has that of any position.
        """
        H, count = self.horizon, len(rows)
        # positions that so many rows touch, wherever they begin, and those that follow them
        window = (count + 2 * H - 2) // H + H - 1
        if self.exact_counts:
            positions_Q, place_R = torch.unique(self.position_R[rows], return_inverse=True)
        elif contiguous and window < count:
            first = rows[:1] // H
            positions_Q = first + torch.arange(window, device=rows.device)
            positions_Q = positions_Q.clamp(max=len(self.asked_N) - 1)
            place_R = self.position_R[rows] - first
        else:
            positions_Q = self.position_R[rows]
            place_R = torch.arange(count, device=rows.device)
        # states that nobody asks for may be no numbers, and 0 times NaN is not 0
        unasked_Q1 = ~self.asked_N[positions_Q].unsqueeze(1)
        x_QD = self.hidden_ND[positions_Q].masked_fill_(unasked_Q1, 0)
        p_QV = scratch_RV[: len(positions_Q)]
        torch.mm(x_QD.to(self.matrix_VD.dtype), self.matrix_VD.t(), out=p_QV)
        torch.softmax(p_QV, 1, out=p_QV)
        return p_QV, place_R


def _mean_distance(p_RV: Tensor, z_RV: Tensor, targets_R1: Tensor) -> Tensor:
    """``Z[y] - sum_v p[v] * Z[v]``, ``[R, 1]``, at least float32."""
    z_target_R1 = z_RV.gather(1, targets_R1)
    if z_RV.element_size() == 2:  # p is rounded: its sum is not 1
        return (p_RV.float() * (z_target_R1.float() - z_RV.float())).sum(1, keepdim=True)
    mean_R: Tensor = torch.linalg.vecdot(p_RV, z_RV)
    return z_target_R1 - mean_R.unsqueeze(1)
