import math

import pytest
import torch
from torch import Tensor

from wmtp.weighting import Critic, Signals
from wmtp.weighting.value_loss import (
    end_positions,
    last_values,
    logistic_loss,
    pairwise_loss,
    taught_positions,
)

NAN = math.nan
# Row 0 holds a document of tokens 0..2 with R = 1 and one of tokens 3..4 that goes on; row 1 a
# document without a reward. Token 1 of row 0 is prompt. H = 1.
VALID = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0]], dtype=torch.bool).unsqueeze(2)
LAST = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool).unsqueeze(2)
REWARDS = torch.tensor([[0.0, 1.0, 0.0, 0.0], [NAN, NAN, NAN, NAN]]).unsqueeze(2)
VALUES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
SIGNALS = Signals(VALID, values=VALUES, rewards=REWARDS, last=LAST)


def loss_and_gradient(critic: Critic, scores_BS: Tensor) -> tuple[float, float, Tensor]:
    scores_BS = scores_BS.clone().requires_grad_()
    total, count = critic.value_head_loss(scores_BS, SIGNALS)
    total.backward()
    assert scores_BS.grad is not None
    return total.item(), count.item(), scores_BS.grad


def test_only_wanted_tokens_of_documents_with_a_reward_are_taught() -> None:
    assert taught_positions(SIGNALS).tolist() == [[False, True, False, True], [False] * 4]
    assert end_positions(SIGNALS).tolist() == [
        [False, True, False, False],
        [False, False, True, False],
    ]


def test_squared_error_against_returns() -> None:
    """Before token 2: return 1. Before token 4, where the row ends: gamma * V_3 = 0.5 * 0.4."""
    critic = Critic(value_loss="mse", gamma=0.5)
    total, count, gradient = loss_and_gradient(critic, VALUES)
    assert count == 2
    assert total == pytest.approx((0.2 - 1) ** 2 + (0.4 - 0.2) ** 2)
    expected = torch.tensor([[0.0, 2 * (0.2 - 1), 0.0, 2 * (0.4 - 0.2)], [0.0] * 4])
    torch.testing.assert_close(gradient, expected)


def test_cross_entropy_against_returns_from_the_scores() -> None:
    critic = Critic(value_loss="bce", gamma=0.5)
    total, count, gradient = loss_and_gradient(critic, VALUES.logit())
    assert count == 2
    expected = -math.log(0.2) - 0.2 * math.log(0.4) - 0.8 * math.log(0.6)
    assert total == pytest.approx(expected)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.2 - 1, 0.0, 0.4 - 0.2], [0.0] * 4]))


def test_cross_entropy_stays_finite_for_scores_that_saturate() -> None:
    critic = Critic(value_loss="bce")
    total, _, gradient = loss_and_gradient(critic, torch.full((2, 4), -1000.0))
    assert total == pytest.approx(1000.0, rel=0.5)
    assert torch.isfinite(gradient).all()


def test_in_a_stream_pairwise_values_are_held_to_their_own_documents_reward() -> None:
    """One document has an end and a reward: R = 1 and the score before its last token 0.2."""
    total, count, gradient = loss_and_gradient(Critic(value_loss="pairwise"), VALUES)
    assert count == 1
    assert total == pytest.approx(math.log(1 + math.exp(-0.2)))
    expected = torch.zeros(2, 4)
    expected[0, 1] = 1 / (1 + math.exp(-0.2)) - 1
    torch.testing.assert_close(gradient, expected)


def test_a_wrong_solution_is_told_apart_by_the_sign() -> None:
    ends = torch.tensor([[True]])
    good, _ = logistic_loss(torch.tensor([[2.0]]), torch.tensor([[[1.0]]]), ends)
    bad, _ = logistic_loss(torch.tensor([[2.0]]), torch.tensor([[[0.0]]]), ends)
    assert good.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert bad.item() == pytest.approx(math.log(1 + math.exp(2)))


def test_pairs_are_compared_by_their_last_values() -> None:
    values = torch.tensor([[0.0, 3.0, 9.0], [1.0, 9.0, 9.0], [5.0, 5.0, 5.0]])
    ends = torch.tensor([[False, True, False], [True, False, False], [False] * 3])
    last_B, ended_B = last_values(values, ends)
    assert last_B.tolist() == [3.0, 1.0, 0.0]
    assert ended_B.tolist() == [True, True, False]
    good, bad = last_B[[0, 0]], last_B[[1, 2]]
    total, count = pairwise_loss(good, bad, torch.tensor([True, False]))
    assert count == 1
    assert total.item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("value_loss", ["mse", "bce", "pairwise"])
def test_without_a_reward_there_is_no_loss_and_no_gradient(value_loss: str) -> None:
    critic = Critic(value_loss=value_loss)  # type: ignore[arg-type]
    scores = VALUES.clone().requires_grad_()
    unrewarded = Signals(VALID, values=VALUES, rewards=torch.full_like(REWARDS, NAN), last=LAST)
    total, count = critic.value_head_loss(scores, unrewarded)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert scores.grad is not None
    assert not scores.grad.any()


def test_parts_add_up_to_the_whole() -> None:
    """Micro-batches are divided by the count of the whole step, so sums must be sums."""
    for value_loss in ("mse", "bce", "pairwise"):
        critic = Critic(value_loss=value_loss)
        whole = critic.value_head_loss(VALUES, SIGNALS)
        parts = [
            critic.value_head_loss(VALUES[b : b + 1], SIGNALS.of_rows(slice(b, b + 1), None))
            for b in range(2)
        ]
        for k in range(2):
            torch.testing.assert_close(parts[0][k] + parts[1][k], whole[k])
