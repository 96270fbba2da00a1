"""The step from logits to what the gradients need, in place: torch here, one kernel on CUDA."""

from collections.abc import Callable

import torch
from torch import Tensor

from wmtp.loss.pieces import MOVED_BYTES, slices

SoftmaxStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``softmax_minus_one_hot``, or a kernel that does the same."""

NO_TARGET = -1
"""Stands for the target of a row that has none."""


def softmax_minus_one_hot(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into softmax minus one-hot in place; cross-entropy and hits come out.

    Args:
        logits_RV: overwritten; 16-bit ones are worked on in float32, some rows at a time.
        targets_R: int64, ``NO_TARGET`` where there is none: cross-entropy 0, no hit.

    Returns:
        ``(ce_R, correct_R)``: nats, at least float32, and whether the target has the largest
        logit.

    Example:
        >>> logits = torch.zeros(2, 4)
        >>> softmax_minus_one_hot(logits, torch.tensor([1, NO_TARGET]))
        (tensor([1.3863, 0.0000]), tensor([ True, False]))
        >>> logits[0]
        tensor([ 0.2500, -0.7500,  0.2500,  0.2500])
    """
    if logits_RV.dtype in (torch.bfloat16, torch.float16):
        parts = []
        for piece in slices(len(logits_RV), max(1, MOVED_BYTES // (4 * logits_RV.shape[1]))):
            wide_RV = logits_RV[piece].float()
            parts.append(softmax_minus_one_hot(wide_RV, targets_R[piece]))
            logits_RV[piece] = wide_RV
        ce_R, correct_R = (torch.cat(part) for part in zip(*parts, strict=True))
        return ce_R, correct_R
    valid_R = targets_R >= 0
    targets_R1 = targets_R.clamp(min=0).unsqueeze(1)
    z_target_R = logits_RV.gather(1, targets_R1).squeeze(1)
    z_max_R = logits_RV.amax(1)
    torch.softmax(logits_RV, 1, out=logits_RV)
    ce_R = z_max_R - logits_RV.amax(1).log() - z_target_R
    logits_RV.scatter_add_(1, targets_R1, logits_RV.new_full((1, 1), -1.0).expand_as(targets_R1))
    return ce_R.masked_fill(~valid_R, 0), (z_target_R >= z_max_R) & valid_R


def kernel_step() -> SoftmaxStep:
    """The Triton kernel; Triton is imported here, as most machines are without it."""
    from wmtp.loss.softmax_kernel import softmax_minus_one_hot

    return softmax_minus_one_hot
