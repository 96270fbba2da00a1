"""What teaches a value head. Each loss is a sum and a count, to be divided over a whole step."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wmtp.weighting.base import Signals

ValueLoss = Literal["mse", "bce", "pairwise"]
"""Squared error, cross-entropy against a probability, or comparing solutions of one problem."""

SumAndCount = tuple[Tensor, Tensor]
"""A loss summed over what was compared, and how much that was: float32 scalars."""


def taught_positions(signals: Signals) -> Tensor:
    """Where a value is taught, bool ``[B, S]``: before wanted tokens of documents with a reward."""
    return signals.valid_BSH[:, :, 0] & ~signals.rewards_BSH[:, :, 0].isnan()


def end_positions(signals: Signals) -> Tensor:
    """Where a document's last value is, bool ``[B, S]``: before the last wanted token."""
    return signals.valid_BSH[:, :, 0] & signals.last_BSH[:, :, 0]


def mse_loss(values_BS: Tensor, returns_BS: Tensor, taught_BS: Tensor) -> SumAndCount:
    """``(V_s - return_s)^2`` over the taught positions.

    Example:
        >>> V, G = torch.tensor([[0.2, 0.4]]), torch.tensor([[1.2, 0.9]])
        >>> mse_loss(V, G, torch.tensor([[True, True]]))  # 1 + 0.25
        (tensor(1.2500), tensor(2.))
    """
    return _over(taught_BS, (values_BS.float() - returns_BS).square())


def bce_loss(scores_BS: Tensor, returns_BS: Tensor, taught_BS: Tensor) -> SumAndCount:
    """Cross-entropy of ``V = sigmoid(score)`` against returns from 0 to 1, from the scores.

        -G * log V - (1 - G) * log(1 - V)

    Returns lie there where every reward does and only a document's end is rewarded; who reads
    the rewards checks that.

    Example:
        >>> bce_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.3]]), torch.tensor([[True, True]]))
        (tensor(1.3863), tensor(2.))
    """
    losses_BS = F.binary_cross_entropy_with_logits(scores_BS.float(), returns_BS, reduction="none")
    return _over(taught_BS, losses_BS)


def pairwise_loss(good_P: Tensor, bad_P: Tensor, both_P: Tensor) -> SumAndCount:
    """``-log sigmoid(V_good - V_bad)`` of the last values of a right and a wrong solution.

    Args:
        good_P: last value of each pair's right solution, see ``last_values``.
        bad_P: last value of its wrong one.
        both_P: bool, both were read to their ends; other pairs teach nothing.

    Source:
        Ouyang et al. 2022 (arXiv:2203.02155), equation 1.

    Example:
        >>> pairwise_loss(torch.tensor([0.5]), torch.tensor([0.5]), torch.tensor([True]))
        (tensor(0.6931), tensor(1.))
    """
    return _over(both_P, -F.logsigmoid(good_P.float() - bad_P.float()))


def logistic_loss(scores_BS: Tensor, rewards_BSH: Tensor, ends_BS: Tensor) -> SumAndCount:
    """Cross-entropy of ``sigmoid`` of each document's last value against its reward.

    Comparing pairs leaves open how high values lie; a stream of single documents has no pairs,
    and this tells a right one from a wrong one by its own end.

    Args:
        scores_BS: the values.
        rewards_BSH: from 0 to 1, on each document's last wanted token; NaN teaches nothing.
        ends_BS: where the last values are, see ``end_positions``.
    """
    rewards_BS = rewards_BSH[:, :, 0]
    return bce_loss(scores_BS, rewards_BS.nan_to_num(0), ends_BS & ~rewards_BS.isnan())


def last_values(values_BS: Tensor, ends_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The last value of each row's one document, ``[B]``, and whether the row reaches its end.

    Example:
        >>> last_values(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]))
        (tensor([2.]), tensor([True]))
    """
    return (values_BS * ends_BS).sum(1), ends_BS.any(1)


def _over(chosen: Tensor, losses: Tensor) -> SumAndCount:
    return torch.where(chosen, losses, 0).sum(), chosen.sum().float()
