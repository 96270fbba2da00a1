"""Where each new shape costs a compilation, the loss does its work in few shapes."""

import pytest
import torch
from torch import Tensor

from wmtp.loss import Workspace, fused_mtp_loss

B, S, H, D, V = 2, 20, 3, 8, 50


def learned(valid_BSH: Tensor, workspace: Workspace) -> tuple[int, Tensor]:
    """Rows that went through the gradient's products, and the gradient of head 0's states."""
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(B, S, D, generator=generator, requires_grad=True) for _ in range(H)]
    matrix_VD = torch.randn(V, D, generator=generator)
    output = fused_mtp_loss(
        hidden,
        [matrix_VD],
        torch.randint(0, V, (B, S, H), generator=generator),
        valid_BSH,
        lambda ce, part: torch.ones(B, S, H),
        "known",
        valid_count=100.0,
        workspace=workspace,
        valid_targets=int(valid_BSH.sum()),
    )
    output.loss.backward()
    assert hidden[0].grad is not None
    return output.gradient_rows, hidden[0].grad


@pytest.mark.parametrize(("parts", "most"), [(4, 4), (None, 100)])
def test_counts_that_vary_come_in_few_sizes(parts: int | None, most: int) -> None:
    sizes = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        valid_BSH = torch.rand(B, S, H, generator=generator) < (seed + 1) / 13
        few = Workspace(exact_counts=False, shape_parts=parts)
        rows, gradient = learned(valid_BSH, few)
        sizes.add(rows)
        assert rows >= valid_BSH.sum()
        _, exact = learned(valid_BSH, Workspace())
        torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=1e-8)
    assert len(sizes) <= most
    assert (len(sizes) > 4) is (parts is None)  # the masks do differ
