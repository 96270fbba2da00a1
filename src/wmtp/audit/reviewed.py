"""Operations without a Metal kernel that are fine on MPS, each read once with the reason.

A composite operation is C++ that calls others. What it calls may lack a kernel, may wait for the
device, or may be slow, so each is looked at before it is let through.
"""

from typing import Final

_VIEW = "a view: no work for the device"
_FILLED = "an allocation and a fill, which has a kernel"
_EMPTY = "an allocation alone"
_COPY = "a copy, by the copy kernel of MPS"
_SCALAR = "wraps the number and calls the operation on tensors, which has a kernel"
_LOOP = "a loop over the tensors with the operation on one, which has a kernel"

REVIEWED: Final[dict[str, str]] = {
    "expand": _VIEW,
    "select.int": _VIEW,
    "slice.Tensor": _VIEW,
    "split.Tensor": _VIEW,
    "squeeze.dim": _VIEW,
    "t": _VIEW,
    "transpose.int": _VIEW,
    "unbind.int": _VIEW,
    "unsqueeze": _VIEW,
    "_unsafe_view": _VIEW,
    "empty_like": _EMPTY,
    "new_empty": _EMPTY,
    "full": _FILLED,
    "full_like": _FILLED,
    "new_full": _FILLED,
    "new_zeros": _FILLED,
    "new_ones": _FILLED,
    "ones": _FILLED,
    "ones_like": _FILLED,
    "zeros": _FILLED,
    "zeros_like": _FILLED,
    "scalar_tensor": _FILLED,
    "eye": "an allocation and eye.m_out, which has a kernel",
    "arange": "an allocation and arange.start_out, which has a kernel",
    "arange.start": "an allocation and arange.start_out, which has a kernel",
    "_to_copy": _COPY,
    "clone": _COPY,
    "copy_": _COPY,
    "abs": "an allocation and abs.out, which has a kernel",
    "logical_not": "an allocation and logical_not.out, which has a kernel",
    "add.Scalar": _SCALAR,
    "add_.Scalar": _SCALAR,
    "mul.Scalar": _SCALAR,
    "div.Scalar": _SCALAR,
    "div_.Scalar": _SCALAR,
    "rsub.Scalar": _SCALAR,
    "remainder.Scalar": _SCALAR,
    "masked_fill.Scalar": "clone and masked_fill_.Scalar, which has a kernel",
    "sum": "sum.dim_IntList over all dimensions, which has a kernel",
    "sort": "sort.stable, which has a kernel",
    "stack": "unsqueezes and cat, which has a kernel",
    "embedding": "index_select, which has a kernel",
    "index_put_": "_index_put_impl_, which has a kernel; flags as indices are host syncs, a rule",
    "slice_backward": "zeros, a view and a copy",
    "select_backward": "zeros, a view and a copy",
    "softmax.int_out": "_softmax.out, which has a kernel; no conversion, as dtypes are equal",
    "_safe_softmax": "_softmax, a comparison, all and masked_fill, which have kernels",
    "_foreach_add_.Scalar": _LOOP + "; of the optimizer's step counts, once a step",
    "_foreach_sub_.List": _LOOP + "; of the optimizer's step counts, once a step",
    "nan_to_num": "an allocation and nan_to_num.out, which has a kernel",
    "rand": "an allocation and uniform_, which has a kernel",
    "binary_cross_entropy_with_logits": "log_sigmoid_forward, mul, sub and mean, with kernels",
}
