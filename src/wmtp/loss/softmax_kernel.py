"""The loss's softmax step as one Triton kernel; imported only where it is asked for.

The same numbers as ``sweep.softmax_minus_one_hot``, reading each logit twice and writing it once
where the torch operations pass over the logits six times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_BLOCK = 8192
"""Columns handled at a time by one row's program: 16 to each thread, all in registers."""


@triton.jit
def _softmax_minus_one_hot(
    logits,
    targets,
    ce,
    correct,
    row_stride,
    vocabulary,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # rows times columns exceed 31 bits
    z_row = logits + row * row_stride
    target = tl.load(targets + row)
    valid = target >= 0
    place = tl.where(valid, target, 0)
    # before the loop, whose reductions let no thread go on to overwrite this logit
    z_target = tl.load(z_row + place).to(tl.float32)
    lanes = tl.arange(0, BLOCK)

    highest = -float("inf")
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        inside = columns < vocabulary
        z = tl.load(z_row + columns, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(z, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), 0)
        highest = higher

    tl.store(ce + row, tl.where(valid, highest + tl.log(total) - z_target, 0.0))
    tl.store(correct + row, (valid & (z_target >= highest)).to(tl.int8))

    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        inside = columns < vocabulary
        z = tl.load(z_row + columns, mask=inside, other=-float("inf")).to(tl.float32)
        p = tl.exp(z - highest) / total
        p = tl.where(columns == place, p - 1.0, p)
        tl.store(z_row + columns, p.to(logits.dtype.element_ty), mask=inside)


def softmax_minus_one_hot(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """``sweep.softmax_minus_one_hot`` in one launch.

    Args:
        logits_RV: float32, bf16 or fp16, each row contiguous; overwritten.
        targets_R: int64, negative where there is none.

    Returns:
        ``(ce_R, correct_R)``, float32 nats and bool.
    """
    rows, vocabulary = logits_RV.shape
    ce_R = torch.empty(rows, dtype=torch.float32, device=logits_RV.device)
    correct_R = torch.empty(rows, dtype=torch.int8, device=logits_RV.device)
    if rows:  # a launch of nothing is refused
        block = min(LARGEST_BLOCK, triton.next_power_of_2(vocabulary))
        _softmax_minus_one_hot[(rows,)](
            logits_RV,
            targets_R,
            ce_R,
            correct_R,
            logits_RV.stride(0),
            vocabulary,
            BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
        )
    return ce_R, correct_R.view(torch.bool)
