"""One row, S = 4, H = 2, worked by hand; valid targets (0,0) (0,1) (1,0) (1,1) (2,0)."""

import pytest
import torch
from torch import Tensor

from wmtp.weighting import Baseline, Column, Critic, Rho1, Signals, Weighting
from wmtp.weighting.critic import advantage_weights

VALID = torch.tensor([[[1, 1], [1, 1], [1, 0], [0, 0]]], dtype=torch.bool)
CE = torch.tensor([[[2.0, 3.0], [1.0, 4.0], [0.5, 77.0], [88.0, 99.0]]])
REFERENCE = torch.tensor([[[1.0, 1.5], [1.5, 0.5], [0.5, 0.0], [0.0, 0.0]]])


def weights_of(weighting: Weighting) -> Tensor:
    signals = Signals(VALID, CE, REFERENCE, loss_weights=CE)
    weights = weighting.weights(signals)
    assert not weights[~VALID].any()
    return weights[VALID]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Rho1(), [1.7052, 0.2726, 0.3805, 2.0144, 0.6273]),
        (Rho1(max_weight=1.5), [1.5, 0.4258, 0.5943, 1.5, 0.9798]),
        (Rho1(compete="heads"), [1.7243, 0.2757, 0.3177, 1.6823, 1.0]),
        (Rho1(mode="token_skip"), [1.25, 0.0, 1.25, 1.25, 1.25]),
        (Baseline(), [1.0, 1.0, 1.0, 1.0, 1.0]),
        (Column(), [10 / 10.5, 15 / 10.5, 5 / 10.5, 20 / 10.5, 2.5 / 10.5]),
        (Column(normalize=False), [2.0, 3.0, 1.0, 4.0, 0.5]),
    ],
    ids=lambda value: "" if isinstance(value, list) else repr(value),
)
def test_weights_equal_the_worked_example(weighting: Weighting, expected: list[float]) -> None:
    torch.testing.assert_close(weights_of(weighting), torch.tensor(expected), atol=6e-5, rtol=0)


def test_uncentered_excess_is_ce_minus_reference() -> None:
    scores = Rho1(center="none").scores(Signals(VALID, CE, REFERENCE))[VALID]
    torch.testing.assert_close(scores, torch.tensor([1.0, 1.5, -0.5, 3.5, 0.0]))


def test_centered_excess_subtracts_the_mean_of_its_head() -> None:
    scores = Rho1().scores(Signals(VALID, CE, REFERENCE))[VALID]
    expected = torch.tensor([5 / 6, -1.0, -2 / 3, 1.0, -1 / 6])
    torch.testing.assert_close(scores, expected)


def test_absolute_score_ignores_the_sign() -> None:
    scores = Rho1(score="absolute").scores(Signals(VALID, CE, REFERENCE))[VALID]
    torch.testing.assert_close(scores, torch.tensor([5 / 6, 1.0, 2 / 3, 1.0, 1 / 6]))


def test_scores_below_min_ce_diff_become_zero() -> None:
    scores = Rho1(min_ce_diff=0.7).scores(Signals(VALID, CE, REFERENCE))[VALID]
    torch.testing.assert_close(scores, torch.tensor([5 / 6, -1.0, 0.0, 1.0, 0.0]))


# the fourth value is that of x_3, after which nothing is left to expect: it must not matter
CRITIC = Signals(
    VALID,
    values=torch.tensor([[0.2, 0.4, 0.3, 66.0]]),
    rewards=torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]),
    last=torch.tensor([[[0, 0], [0, 1], [1, 0], [0, 0]]], dtype=torch.bool),
)


def test_advantages_and_returns_equal_the_worked_example() -> None:
    advantages, returns = Critic().advantages(CRITIC)
    expected = torch.tensor([0.7183, 0.5554, 0.5554, 0.7, 0.7])
    torch.testing.assert_close(advantages[VALID], expected, atol=6e-5, rtol=0)
    expected = torch.tensor([0.9183, 0.9554, 1.0])
    torch.testing.assert_close(returns[0, :3], expected, atol=6e-5, rtol=0)


def test_critic_weights_equal_the_worked_example() -> None:
    advantages, _ = Critic().advantages(CRITIC)
    weights = advantage_weights(advantages, VALID, 0.0, 0.5, clip=3.0, beta=1.0)
    assert not weights[~VALID].any()
    expected = torch.tensor([1.1437, 0.8256, 0.8256, 1.1026, 1.1026])
    torch.testing.assert_close(weights[VALID], expected, atol=6e-5, rtol=0)
