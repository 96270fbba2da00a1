"""Products in 16 bits on a CPU: how far the gradients stay from float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmtp.loss import Workspace, fused_mtp_loss

B, S, H, D, V = 2, 96, 4, 256, 1500


def gradients(hidden: list[Tensor], matrix_VD: Tensor, targets_BSH: Tensor) -> list[Tensor]:
    """Of plain autograd in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (*hidden, matrix_VD)]
    logits_BSHV = torch.stack([x @ leaves[-1].T for x in leaves[:-1]], 2)
    F.cross_entropy(logits_BSHV.flatten(0, 2), targets_BSH.flatten()).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("chunk_rows", [64, 1000])
@pytest.mark.parametrize(
    ("product_dtype", "limit"), [(torch.bfloat16, 3e-3), (None, 1e-6)], ids=["bf16", "fp32"]
)
def test_gradients_of_short_products_stay_within_their_bound(
    chunk_rows: int, product_dtype: torch.dtype | None, limit: float
) -> None:
    torch.manual_seed(0)
    hidden = [torch.randn(B, S, D) for _ in range(H)]
    matrix_VD = torch.randn(V, D) * 2 / D**0.5
    targets_BSH = torch.randint(0, V, (B, S, H))
    wanted = gradients(hidden, matrix_VD, targets_BSH)

    leaves = [x.clone().requires_grad_() for x in hidden]
    total_VD = torch.zeros(V, D)
    output = fused_mtp_loss(
        leaves,
        [matrix_VD],
        targets_BSH,
        torch.ones(B, S, H, dtype=torch.bool),
        lambda ce, part: torch.ones(B, S, H),
        "known",
        valid_count=B * S * H,
        unembedding_gradients=[total_VD],
        workspace=Workspace(chunk_rows=chunk_rows, product_dtype=product_dtype),
    )
    output.loss.backward()  # type: ignore[no-untyped-call]
    found = [*(leaf.grad for leaf in leaves), total_VD]
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert one.dtype == torch.float32
        error = ((one - other).norm() / other.norm()).item()
        assert error <= limit
        assert product_dtype is None or error > 1e-4  # that it did compute in 16 bits
