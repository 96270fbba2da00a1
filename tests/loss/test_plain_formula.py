"""The plain formula on cases worked by hand."""

import pytest
import torch

from wmtp.loss import weighted_mtp_loss


def test_plain_formula_counts_heads_by_their_scale() -> None:
    """Head 1 counts half: N = 2 + 0.5; (1*2 + 3*1 + 0.5*0.5*4) / 2.5 = 2.4."""
    ce = torch.tensor([[[2.0, 4.0], [1.0, 9.0]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    weights = torch.tensor([[[1.0, 0.5], [3.0, 7.0]]])
    loss = weighted_mtp_loss(ce, weights, valid, 2.5, head_scale_H=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, torch.tensor(2.4))


def test_plain_formula_has_zero_gradient_where_nothing_is_valid() -> None:
    ce = torch.full((1, 2, 2), torch.inf, requires_grad=True)
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    loss = weighted_mtp_loss(ce, torch.ones(1, 2, 2), nothing, valid_count=0)
    loss.backward()
    assert loss == 0
    assert torch.equal(ce.grad, torch.zeros(1, 2, 2))


def test_plain_formula_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        weighted_mtp_loss(torch.ones(1, 2, 2), torch.ones(1, 2, 1), torch.ones(1, 2, 2).bool(), 4)
