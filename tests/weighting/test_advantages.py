"""Advantages and returns against a recursion in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from wmtp.weighting.advantages import discounted_sums, generalized_advantages


def plain(
    values: list[float], rewards: list[float], last: list[bool], gamma: float, lam: float
) -> list[float]:
    """``A_t`` for ``t = 1 ..``; ``rewards[t - 1]`` and ``last[t - 1]`` are those of token t."""
    advantages = [0.0] * len(rewards)
    after = 0.0
    for t in range(len(rewards), 0, -1):
        before = values[min(t - 1, len(values) - 1)]
        now = values[min(t, len(values) - 1)]
        reward = 0.0 if math.isnan(rewards[t - 1]) else rewards[t - 1]
        if last[t - 1]:
            after = reward - before
        else:
            after = reward + gamma * now - before + gamma * lam * after
        advantages[t - 1] = after
    return advantages


def packed(B: int, S: int, H: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and for each token the reward and whether a document ends, of rows of documents."""
    generator = torch.Generator().manual_seed(seed)
    values_BS = torch.randn(B, S, generator=generator)
    last_BT = torch.rand(B, S + H - 1, generator=generator) > 0.9
    rewards_BT = torch.randn(B, S + H - 1, generator=generator)
    rewards_BT[torch.rand(B, S + H - 1, generator=generator) > 0.7] = torch.nan
    return values_BS, rewards_BT, last_BT


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize(
    "shape", [(3, 50, 4), (2, 64, 1), (1, 1, 1), (1, 1, 3), (1, 2, 2)], ids=str
)
def test_advantages_equal_the_plain_recursion(
    shape: tuple[int, int, int], gamma: float, lam: float
) -> None:
    B, S, H = shape
    values_BS, rewards_BT, last_BT = packed(B, S, H)
    advantages_BSH, returns_BS = generalized_advantages(
        values_BS, rewards_BT.unfold(1, H, 1), last_BT.unfold(1, H, 1), gamma, lam
    )
    for b in range(B):
        expected = plain(
            values_BS[b].tolist(), rewards_BT[b].tolist(), last_BT[b].tolist(), gamma, lam
        )
        for s in range(S):
            # float32 sums of up to 50 terms of order 1
            assert advantages_BSH[b, s].tolist() == pytest.approx(expected[s : s + H], abs=1e-5)
            total = expected[s] + values_BS[b, s].item()
            assert returns_BS[b, s].item() == pytest.approx(total, abs=1e-5)


def test_with_lambda_one_the_return_is_the_discounted_reward() -> None:
    """Whatever the values: they cancel, and a reward k tokens on counts gamma^k."""
    values_BS = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    rewards_BSH = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 2.0]).view(1, 6, 1)
    _, returns_BS = generalized_advantages(values_BS, rewards_BSH, rewards_BSH > 0, 0.5, 1.0)
    expected = torch.tensor([[2 / 32, 2 / 16, 2 / 8, 2 / 4, 2 / 2, 2.0]])
    torch.testing.assert_close(returns_BS, expected, atol=1e-6, rtol=0)


def test_the_next_document_of_a_row_does_not_matter() -> None:
    values_BS, rewards_BT, last_BT = packed(1, 12, 2)
    last_BT[:] = False
    last_BT[0, 5] = True  # token 6

    def advantages() -> Tensor:
        return generalized_advantages(
            values_BS, rewards_BT.unfold(1, 2, 1), last_BT.unfold(1, 2, 1), 0.99, 0.95
        )[0]

    before = advantages()
    values_BS[0, 6:] += 100  # V_6, after the last token, is the first that must not count
    rewards_BT[0, 6:] = 100.0
    torch.testing.assert_close(advantages()[0, :5], before[0, :5], atol=0, rtol=0)
    assert (advantages()[0, 6] != before[0, 6]).all()


def test_no_gradient_reaches_the_values() -> None:
    values_BS = torch.ones(1, 3, requires_grad=True)
    last_BSH = torch.zeros(1, 3, 2, dtype=torch.bool)
    for result in generalized_advantages(values_BS, torch.ones(1, 3, 2), last_BSH, 0.9, 0.9):
        assert not result.requires_grad


@pytest.mark.parametrize("T", [1, 2, 3, 7, 8, 9, 1000])
def test_discounted_sums_of_any_length(T: int) -> None:
    """A factor of one half everywhere: 2 - 2^-(what is left)."""
    found = discounted_sums(torch.ones(1, T), torch.full((1, T), 0.5))
    expected = 2 - 0.5 ** torch.arange(T - 1, -1, -1.0).unsqueeze(0)
    torch.testing.assert_close(found, expected)
