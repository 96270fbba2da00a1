"""Our model with the roundings of an engine that computes in fewer bits.

llama.cpp stores matrices in few bits, and rounds what it multiplies them with to the same kind of
numbers. How far that alone moves a logit depends on the model: on SmolLM2-135M in f16 by 0.05, on
weights that f16 holds exactly, and in q8_0 by 2. So the limit of such a file is measured on our own
model, rounded in the same places.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmtp.export.gguf import BLOCK_OF_Q8_0, Dtype, gguf_library, stored_type
from wmtp.model.multi_token import MultiTokenModel

if TYPE_CHECKING:
    from types import ModuleType


@torch.no_grad()
def round_model(model: MultiTokenModel, dtype: Dtype) -> None:
    """Round every matrix, and from now on what any linear map reads. There is no way back."""
    gguf = gguf_library()
    seen: set[int] = set()
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.data_ptr() not in seen:
            kind = stored_type(tuple(parameter.shape), dtype)
            parameter.copy_(_through_the_file(gguf, parameter, kind))
            seen.add(parameter.data_ptr())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            kind = stored_type(tuple(module.weight.shape), dtype)
            module.register_forward_pre_hook(lambda _, inputs, kind=kind: rounded(inputs[0], kind))


def rounded(x: Tensor, dtype: Dtype) -> Tensor:
    """The numbers that llama.cpp multiplies a matrix of this kind with.

    Example:
        In q8_0, 32 numbers share a scale, here 1.27 / 127:

        >>> rounded(torch.tensor([1.27, 0.014] + [0.0] * 30), "q8_0")[:2]
        tensor([1.2703, 0.0100])
    """
    if dtype == "f16":
        return x.half().float()
    if dtype == "bf16":
        return x.bfloat16().float()
    if dtype == "q8_0":
        blocks = x.reshape(-1, BLOCK_OF_Q8_0)
        scale = blocks.abs().amax(dim=1, keepdim=True) / 127
        whole = torch.where(scale > 0, blocks / scale, 0).round()
        return (whole * scale.half().float()).reshape(x.shape)
    return x


def _through_the_file(gguf: "ModuleType", matrix: Tensor, dtype: Dtype) -> Tensor:
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    stored = gguf.quants.quantize(matrix.detach().contiguous().numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(stored, kind).copy())
