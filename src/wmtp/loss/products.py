"""Matrix products whose sums are float32, whatever their factors are.

Where the device gives products of 16-bit numbers back in 16 bits, each product is rounded once.
"""

import functools
from typing import Literal

import torch
from torch import Tensor

from wmtp.loss.pieces import MOVED_BYTES, slices


@functools.cache
def _wide_sums(device: torch.device, narrow: torch.dtype) -> Literal["add", "new", "none"]:
    """How far the device sums 16-bit products in a float32 result: into one there, a new one.

    Not every version and device of torch has both; asked once, of the smallest product there is.
    """
    one = torch.ones(1, 1, dtype=narrow, device=device)
    total = torch.zeros(1, 1, dtype=torch.float32, device=device)
    try:
        torch.mm(one, one, out_dtype=torch.float32)
    except RuntimeError:  # NotImplementedError is one
        return "none"
    try:
        torch.addmm(total, one, one, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return "new"
    return "add"


def product(left_RV: Tensor, right_VD: Tensor, wide: torch.dtype) -> Tensor:
    """Matrix product with a result as wide as asked."""
    if left_RV.dtype != wide and _wide_sums(left_RV.device, left_RV.dtype) != "none":
        return torch.mm(left_RV, right_VD, out_dtype=wide)
    return torch.mm(left_RV, right_VD).to(wide)


def add_product(sum_VD: Tensor, left_VR: Tensor, right_RD: Tensor, factor: float) -> None:
    """``sum += factor * left @ right``, added up as wide as ``sum`` is."""
    if left_VR.dtype == sum_VD.dtype:
        sum_VD.addmm_(left_VR, right_RD, alpha=factor)
        return
    way = _wide_sums(left_VR.device, left_VR.dtype)
    if way == "add":
        torch.addmm(sum_VD, left_VR, right_RD, out_dtype=sum_VD.dtype, alpha=factor, out=sum_VD)
        return
    most = max(1, MOVED_BYTES // (4 * max(left_VR.shape[1], right_RD.shape[1])))
    for part in slices(len(sum_VD), most):  # or a second [V, D] would exist
        if way == "new":
            product_VD = torch.mm(left_VR[part], right_RD, out_dtype=sum_VD.dtype)
            sum_VD[part].add_(product_VD, alpha=factor)
        else:  # summed in float32 in there, rounded once
            sum_VD[part].add_(torch.mm(left_VR[part], right_RD), alpha=factor)
