"""Matrices in the layout from which a CPU multiplies a few rows fastest, for decoding.

A product with one row, or with the five of a pass over drafts, does little but read the matrix.
oneDNN reads one that it laid out itself at the speed of the memory, whatever the number of rows up
to about five; torch's own product of the plain layout took 1.7 times as long for one row, and up to
3 times for five (2 cores of an AMD EPYC, SmolLM2-135M's matrices; ``benchmarks/decode.py`` times
yours).
"""

import itertools
from functools import lru_cache
from typing import Final, cast, final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmtp.model.llama import LlamaTrunk
from wmtp.model.multi_token import MultiTokenModel

SMALLEST_PACKED: Final = 1 << 18
"""Numbers of a matrix below which the 12 microseconds that a call takes longer are not won back."""


def pack_for_decoding(
    model: MultiTokenModel, *, smallest: int = SMALLEST_PACKED
) -> MultiTokenModel:
    """Lay a model's matrices out for decoding on a CPU; elsewhere leave it as it is.

    The model can no longer be trained, saved, cast or moved. The unembedding is kept in both
    layouts, all other matrices in the new one alone. Products add up in another order: logits
    differ by rounding.

    Args:
        model: changed in place.
        smallest: matrices with fewer numbers stay as they are.

    Returns:
        The same model.
    """
    if not packing_works(model.device.type, model.trunk.embedding_VD.dtype):
        return model
    parts: list[nn.Module] = [*model.trunk.blocks] if isinstance(model.trunk, LlamaTrunk) else []
    if model.heads is not None and model.heads.blocks:
        parts.append(model.heads)
    for part in parts:
        for module in list(part.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear and child.weight.numel() >= smallest:
                    setattr(module, name, PackedLinear(child))
    if model.unembedding_VD.numel() >= smallest:
        model.product_with_unembedding = PackedMatrix(model.unembedding_VD.detach())
    return model


@final
class PackedMatrix:
    """A matrix that is multiplied by.

    Args:
        matrix_OI: float32 or bfloat16, on the CPU.
    """

    def __init__(self, matrix_OI: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix_OI.contiguous(), None)
        self._height = matrix_OI.shape[0]
        self._number = next(_NUMBERS)
        _BY_NUMBER[self._number] = self

    def __call__(self, x: Tensor) -> Tensor:
        """``x @ matrix.T``, ``[..., I]`` to ``[..., O]``."""
        if torch.compiler.is_compiling():  # which cannot look into a packed matrix
            return cast(Tensor, _product_by_number(x, self._number, self._height))
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same, out of compiled code."""
        product = torch.ops.mkldnn._linear_pointwise
        return cast(Tensor, product(x, self._packed, None, "none", [], ""))


_NUMBERS = itertools.count()
_BY_NUMBER: WeakValueDictionary[int, PackedMatrix] = WeakValueDictionary()


@torch.library.custom_op("wmtp::packed_product", mutates_args=())
def _product_by_number(x: Tensor, number: int, height: int) -> Tensor:
    """What compiled code calls."""
    return _BY_NUMBER[number].product(x)


@_product_by_number.register_fake
def _(x: Tensor, number: int, height: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], height)


@final
class PackedLinear(nn.Module):
    """A linear map without its plain matrix, and without a bias.

    Attributes:
        num_bytes: of the matrix.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.num_bytes = plain.weight.numel() * plain.weight.element_size()
        self._product = PackedMatrix(plain.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """What the plain map gives, to rounding."""
        return self._product(x)


@lru_cache
@torch.no_grad()
def packing_works(device_type: str, dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and does what it should.

    The two operations are those that ``torch.compile`` itself emits, and no promise of torch's to
    its users: so they are tried out on a small product.
    """
    if device_type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    draws = torch.Generator().manual_seed(0)
    matrix_OI = torch.randn(48, 32, generator=draws).to(dtype)
    x_RI = torch.randn(3, 32, generator=draws).to(dtype)
    try:
        found_RO = PackedMatrix(matrix_OI)(x_RI)
    except (AttributeError, RuntimeError, NotImplementedError):  # not in this build of torch
        return False
    near = 1e-4 if dtype == torch.float32 else 0.3
    return torch.allclose(found_RO.float(), F.linear(x_RI, matrix_OI).float(), atol=near, rtol=0.02)
