import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from wmtp.weighting import Critic, Signals, remember, weigh_chunk
from wmtp.weighting.critic import (
    SMALLEST_SIGMA,
    advantage_weights,
    read_moments,
)


def signals_of(critic: Critic, advantages: Tensor, memory: dict[str, Tensor]) -> Signals:
    """Signals whose advantages are the given ones: every token ends a document, values are 0."""
    rewards_BSH = advantages.unsqueeze(2)
    return Signals(
        ~rewards_BSH.isnan(),
        values=torch.zeros(advantages.shape),
        rewards=rewards_BSH,
        last=torch.ones_like(rewards_BSH, dtype=torch.bool),
        memory=memory,
        sums=critic.start_sums(),
    )


def take_step(critic: Critic, memory: dict[str, Tensor], *advantages: Tensor) -> None:
    """A step whose micro-batches have these advantages."""
    sums = critic.start_sums()
    for one in advantages:
        critic.weights(replace(signals_of(critic, one, memory), sums=sums))
    remember(critic, memory, sums)


def memory_after_a_step(critic: Critic) -> dict[str, Tensor]:
    memory = critic.start_memory()
    take_step(critic, memory, torch.tensor([[-1.0, 1.0]]))
    return memory


def test_the_first_step_weighs_all_the_same() -> None:
    critic = Critic()
    memory = critic.start_memory()
    signals = signals_of(critic, torch.tensor([[-1.0, 1.0, torch.nan]]), memory)
    weights = weigh_chunk(critic, signals, None, slice(0, 1)).flatten()
    assert weights.tolist() == [1.0, 1.0, 0.0]


def test_the_second_step_is_weighed_by_the_moments_of_the_first() -> None:
    """A = -1, 1: mu 0, sigma 1, whatever the decay, so weights are 2 / (1 + e^2) and the rest."""
    critic = Critic(decay=0.9)
    memory = critic.start_memory()
    take_step(critic, memory, torch.tensor([[-1.0, 1.0]]))
    mu, sigma = read_moments(memory)
    assert mu.item() == pytest.approx(0, abs=1e-7)
    assert sigma.item() == pytest.approx(1)
    signals = signals_of(critic, torch.tensor([[-1.0, 1.0]]), memory)
    low = 2 / (1 + math.exp(2))
    weights = weigh_chunk(critic, signals, None, slice(0, 1)).flatten()
    torch.testing.assert_close(weights, torch.tensor([low, 2 - low]))


def test_moments_run_over_steps_with_the_decay() -> None:
    """Means 2 then 4, decay 0.5: (0.25 * 2 + 0.5 * 4) / 0.75; squares 4 then 20 likewise."""
    critic = Critic(decay=0.5)
    memory = critic.start_memory()
    take_step(critic, memory, torch.tensor([[2.0, 2.0]]))
    take_step(critic, memory, torch.tensor([[2.0, 6.0]]))
    mu, sigma = read_moments(memory)
    mean, square = 2.5 / 0.75, (0.25 * 4 + 0.5 * 20) / 0.75
    assert mu.item() == pytest.approx(mean)
    assert sigma.item() == pytest.approx(math.sqrt(square - mean**2))


def test_moments_do_not_depend_on_how_a_step_is_cut() -> None:
    """Sum, sum of squares and count, over valid targets alone, add up over its parts."""
    advantages = torch.tensor([[1.0, 3.0], [5.0, torch.nan]])
    whole, parts = Critic().start_memory(), Critic().start_memory()
    take_step(Critic(), whole, advantages)
    take_step(Critic(), parts, advantages[:1], advantages[1:])
    assert whole == parts
    mu, sigma = read_moments(whole)
    assert mu.item() == pytest.approx(3.0, rel=1e-5)
    assert sigma.item() == pytest.approx(math.sqrt(35 / 3 - 9), rel=1e-5)


def test_equal_advantages_weigh_the_same_and_sigma_has_a_floor() -> None:
    critic = Critic()
    memory = critic.start_memory()
    advantages = torch.full((2, 5), 0.7)
    take_step(critic, memory, advantages)
    weights = critic.weights(signals_of(critic, advantages, memory))
    torch.testing.assert_close(weights, torch.ones(2, 5, 1), atol=1e-2, rtol=0)  # rounding / floor
    _, sigma = read_moments(memory)
    assert sigma.item() >= 0.99 * SMALLEST_SIGMA


def test_before_any_target_was_seen_moments_are_zero_and_the_floor() -> None:
    mu, sigma = read_moments(Critic().start_memory())
    assert mu.item() == 0
    assert sigma.item() == pytest.approx(SMALLEST_SIGMA)


def test_advantages_beyond_the_clip_count_as_the_clip() -> None:
    advantages = torch.tensor([[[-100.0], [0.0], [2.0], [100.0]]])
    valid = torch.ones_like(advantages, dtype=torch.bool)
    weights = advantage_weights(advantages, valid, 0.0, 1.0, clip=2.0, beta=1.0).flatten()
    raw = torch.tensor([math.exp(-2), 1.0, math.exp(2), math.exp(2)])
    torch.testing.assert_close(weights, 4 * raw / raw.sum())


def test_a_smaller_beta_is_sharper_and_stays_finite() -> None:
    advantages = torch.tensor([[[-1.0], [0.0], [1.0]]])
    valid = torch.ones_like(advantages, dtype=torch.bool)

    def weights(beta: float) -> Tensor:
        return advantage_weights(advantages, valid, 0.0, 1.0, clip=3.0, beta=beta).flatten()

    assert weights(0.5).max() > weights(1.0).max() > weights(2.0).max()
    torch.testing.assert_close(weights(1e-3), torch.tensor([0.0, 0.0, 3.0]))


def test_a_row_without_reward_and_with_a_silent_head_is_plain() -> None:
    """Values 0 and no reward: no surprise anywhere, so every target counts the same."""
    critic = Critic()
    signals = Signals(
        torch.ones(1, 4, 2, dtype=torch.bool),
        values=torch.zeros(1, 4),
        rewards=torch.full((1, 4, 2), torch.nan),
        last=torch.zeros(1, 4, 2, dtype=torch.bool),
        memory=memory_after_a_step(critic),
        sums=critic.start_sums(),
    )
    torch.testing.assert_close(critic.weights(signals), torch.ones(1, 4, 2))


def test_the_same_token_weighs_the_same_for_every_head() -> None:
    critic = Critic()
    signals = Signals(
        torch.ones(1, 5, 3, dtype=torch.bool),
        values=torch.randn(1, 5, generator=torch.Generator().manual_seed(0)),
        rewards=torch.zeros(1, 5, 3),
        last=torch.zeros(1, 5, 3, dtype=torch.bool),
        memory=memory_after_a_step(critic),
        sums=critic.start_sums(),
    )
    weights = critic.weights(signals)[0]
    assert len(set(weights[:, 0].tolist())) == 5
    torch.testing.assert_close(weights[1:, 0], weights[:-1, 1], atol=0, rtol=0)
    torch.testing.assert_close(weights[1:, 1], weights[:-1, 2], atol=0, rtol=0)


def test_the_kind_of_value_follows_from_the_loss() -> None:
    assert Critic(value_loss="bce").value_output == "sigmoid"
    assert Critic(value_loss="mse").value_output == "linear"
    assert Critic(value_loss="pairwise").value_output == "linear"


@pytest.mark.parametrize("value_loss", ["bce", "pairwise"])
def test_a_value_of_the_end_refuses_a_reward_in_parts(value_loss: str) -> None:
    with pytest.raises(ValidationError, match="use spread terminal, or value_loss mse"):
        Critic(value_loss=value_loss, spread="uniform")  # type: ignore[arg-type]


@pytest.mark.parametrize(("value_loss", "count"), [("mse", 3), ("bce", 3), ("pairwise", 1)])
def test_what_is_taught_is_what_the_loss_counts(value_loss: str, count: int) -> None:
    """Two documents: one rewarded with three targets of which the last ends it, one without."""
    nan = torch.nan
    signals = Signals(
        torch.tensor([[True, True, True, True, True]]).unsqueeze(2),
        values=torch.zeros(1, 5),
        rewards=torch.tensor([[0.0, 0.0, 1.0, nan, nan]]).unsqueeze(2),
        last=torch.tensor([[False, False, True, False, True]]).unsqueeze(2),
    )
    critic = Critic(value_loss=value_loss)  # type: ignore[arg-type]
    _, counted = critic.value_head_loss(torch.zeros(1, 5), signals)
    assert int(critic.taught(signals).sum()) == int(counted) == count
