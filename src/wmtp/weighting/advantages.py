"""How much better things went, token by token, than the value head expected."""

import torch
from torch import Tensor


@torch.no_grad()
def generalized_advantages(
    values_BS: Tensor, rewards_BSH: Tensor, last_BSH: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantage of every target token and the return that each value should have been.

        delta_t = r_t + gamma * V_t - V_{t-1}           A_t = delta_t + gamma * lambda * A_{t+1}

    For the last wanted token ``T`` of a document, ``V_T`` and ``A_{T+1}`` count as 0. A row is
    left at its end: values after it are not known and taken as ``V_{S-1}``, and ``A`` after its
    last target token is 0. ``V_{t-1}`` is the estimate before token ``t`` was seen, so ``A_t``
    belongs to token ``t``, whichever head aims at it, and not to the position that reads it.

    Args:
        values_BS: ``V_s``, the estimate after reading tokens up to ``s``.
        rewards_BSH: ``r`` of the target token ``s + 1 + h``; NaN counts as 0.
        last_BSH: True where that token is the last wanted one of its document.
        gamma: discount per token, from 0 to 1.
        gae_lambda: 0 trusts the next value, 1 the rewards alone.

    Returns:
        ``(advantages_BSH, returns_BS)``: ``A_{s+1+h}``, and ``A_{s+1} + V_s``. What they are
        where no valid target is does not matter.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438), equation 16.

    Example:
        >>> values = torch.tensor([[0.2, 0.4, 0.3]])
        >>> rewards = torch.tensor([[[0.0], [0.0], [1.0]]])
        >>> advantages, returns = generalized_advantages(values, rewards, rewards > 0, 0.99, 0.95)
        >>> advantages.flatten(), returns.flatten()
        (tensor([0.7183, 0.5554, 0.7000]), tensor([0.9183, 0.9554, 1.0000]))
    """
    S, H = rewards_BSH.shape[1:]
    values_BS = values_BS.detach().float()
    known_BT = torch.cat((values_BS, values_BS[:, -1:].expand(-1, H)), 1)
    rewards_BT = _by_token(rewards_BSH.float())
    rewards_BT = torch.where(rewards_BT.isnan(), 0, rewards_BT)
    goes_on_BT = (~_by_token(last_BSH)).float()
    delta_BT = rewards_BT + gamma * known_BT[:, 1:] * goes_on_BT - known_BT[:, :-1]
    advantages_BT = discounted_sums(delta_BT, gamma * gae_lambda * goes_on_BT)
    # target (s, h) is token s + 1 + h, and the first of these is token 1
    advantages_BSH = torch.stack([advantages_BT[:, h : h + S] for h in range(H)], 2)
    return advantages_BSH, advantages_BSH[:, :, 0] + values_BS


def _by_token(x_BSH: Tensor) -> Tensor:
    """One entry for each token ``1 .. S + H - 1`` of a row, from the heads that aim at it."""
    return torch.cat((x_BSH[:, :, 0], x_BSH[:, -1, 1:]), 1)


def discounted_sums(x_BT: Tensor, factor_BT: Tensor) -> Tensor:
    """``y_t = x_t + factor_t * y_{t+1}`` along the row, 0 after its end, in ``log2(T)`` rounds.

    After round ``k`` an entry has taken in the ``2^k`` entries from its own on, and its factor
    says how much the rest would count: two such stretches, one after the other, make one of
    twice the length.

    Example:
        >>> discounted_sums(torch.ones(1, 3), torch.tensor([[0.5, 0.5, 9.0]]))
        tensor([[1.7500, 1.5000, 1.0000]])
    """
    reach, T = 1, x_BT.shape[1]
    while reach < T:
        x_BT = x_BT + factor_BT * _after(x_BT, reach)
        factor_BT = factor_BT * _after(factor_BT, reach)
        reach *= 2
    return x_BT


def _after(x_BT: Tensor, distance: int) -> Tensor:
    """The entry ``distance`` further on, 0 where the row has none."""
    return torch.nn.functional.pad(x_BT[:, distance:], (0, distance))
