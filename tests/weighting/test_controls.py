from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from wmtp.weighting import (
    Baseline,
    Column,
    Critic,
    RandomMatched,
    Rho1,
    Shuffled,
    Signals,
    Weighting,
    observe,
    remember,
    weigh_chunk,
)
from wmtp.weighting.base import Scope
from wmtp.weighting.controls import BINS, draw, histogram, shuffle

SKIP = Rho1(mode="token_skip", center="none")


class TakesLoss(Weighting):
    """A weight is the cross-entropy itself, so that a test can say what it wants."""

    scope: ClassVar[Scope] = "sequence"

    def weights(self, signals: Signals) -> Tensor:
        return signals.ce_BSH * signals.valid_BSH


class CountsCalls(Weighting):
    """Remembers how often it was asked and shown something."""

    scope: ClassVar[Scope] = "known"

    def start_memory(self) -> dict[str, Tensor]:
        return {"asked": torch.zeros(()), "shown": torch.zeros(())}

    def start_sums(self) -> dict[str, Tensor]:
        return self.start_memory()

    def weights(self, signals: Signals) -> Tensor:
        signals.sums["asked"].add_(1)
        return signals.valid_BSH.float()

    def observe(self, signals: Signals) -> None:
        signals.sums["shown"].add_(1)

    def remember(self, memory: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        for name, value in sums.items():
            memory[name].add_(value)


def random_case(seed: int = 0, B: int = 4, S: int = 50, H: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(B, S, H, generator=generator) > 0.3
    return torch.rand(B, S, H, generator=generator) * 4, valid


# shuffled -----------------------------------------------------------------------------------------


def test_each_row_keeps_exactly_its_own_weights() -> None:
    ce, valid = random_case()
    valid[3] = False
    weighting = Shuffled(around=Rho1(center="none"))
    signals = Signals(valid, reference_ce=torch.zeros_like(ce))
    inner = weigh_chunk(weighting.around, signals, ce, slice(0, 4))
    dealt = weigh_chunk(weighting, signals, ce, slice(0, 4))
    assert not dealt[~valid].any()
    for b in range(4):
        assert dealt[b][valid[b]].sort().values.equal(inner[b][valid[b]].sort().values)
        assert b == 3 or not dealt[b].equal(inner[b])


def test_every_place_is_equally_likely() -> None:
    """Row of three valid targets with weights 0, 1, 2: each weight a third of the time anywhere."""
    torch.manual_seed(0)
    valid = torch.tensor([[True, False, True, True]]).view(1, 4, 1)
    weights = torch.tensor([[0.0, 9.0, 1.0, 2.0]]).view(1, 4, 1)
    n = 20_000
    dealt = shuffle(weights.expand(n, 4, 1), valid.expand(n, 4, 1)).squeeze(2)[:, [0, 2, 3]]
    for weight in range(3):
        share = (dealt == weight).float().mean(0)
        # standard error of a share of 1/3 in 20000: 0.0033; five of them
        torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.017, rtol=0)


def test_a_weighting_of_single_positions_is_dealt_out_over_its_row() -> None:
    inner = Rho1(compete="heads", center="none")
    weighting = Shuffled(around=inner)
    assert (inner.scope, weighting.scope) == ("token", "sequence")
    ce, valid = random_case(1)
    signals = Signals(valid, reference_ce=torch.zeros_like(ce))
    dealt = weigh_chunk(weighting, signals, ce, slice(0, 4))
    whole = weigh_chunk(inner, signals, ce.view(1, 200, 3), slice(0, 200)).view(4, 50, 3)
    for b in range(4):
        assert dealt[b][valid[b]].sort().values.equal(whole[b][valid[b]].sort().values)


def test_scope_and_needs_are_those_of_the_inner_weighting() -> None:
    for inner in (Baseline(), Column(), Rho1(), Critic()):
        assert Shuffled(around=inner).scope == inner.scope
        assert Shuffled(around=inner).needs == inner.needs
        assert RandomMatched(around=inner).scope == "known"
        assert RandomMatched(around=inner).needs == inner.needs


# random_matched -----------------------------------------------------------------------------------


def watch(weighting: RandomMatched, ce: Tensor, valid: Tensor, times: int = 1) -> Signals:
    memory, sums = weighting.start_memory(), weighting.start_sums()
    signals = Signals(valid, ce, reference_ce=torch.zeros_like(ce), memory=memory, sums=sums)
    for _ in range(times):
        observe(weighting, signals)
    remember(weighting, memory, sums)
    return signals


def test_before_anything_is_observed_all_weights_are_one() -> None:
    _, valid = random_case()
    weighting = RandomMatched(around=Rho1())
    weights = weighting.weights(Signals(valid, memory=weighting.start_memory()))
    assert weights.equal(valid.float())


@pytest.mark.parametrize("inner", [Rho1(center="none"), SKIP, TakesLoss()], ids=repr)
def test_drawn_weights_are_distributed_as_the_inner_ones(inner: Weighting) -> None:
    torch.manual_seed(0)
    ce, valid = random_case(B=8, S=200)
    weighting = RandomMatched(around=inner)
    signals = watch(weighting, ce, valid)
    given = inner.weights(signals)[valid]
    count, total = signals.memory["histogram.count"], signals.memory["histogram.sum"]
    drawn = draw(count, total, torch.Size([100_000]))
    # 100000 draws: a standard error of 0.0016 for a share of one half and of std / 316 for the
    # mean, and no more than twice that for the deviation; five of them. A bin is 3 % wide and
    # stands for its own mean, so it takes nothing from the mean and under 0.1 % from the deviation.
    error = 5 * given.std().item() / 316
    assert drawn.mean().item() == pytest.approx(given.mean().item(), abs=error)
    assert drawn.std().item() == pytest.approx(given.std().item(), abs=2 * error)
    zeros = (given == 0).float().mean().item()
    assert (drawn == 0).float().mean().item() == pytest.approx(zeros, abs=0.008)


def test_zeros_stay_zeros_and_a_single_weight_is_met_exactly() -> None:
    """token_skip gives two weights, 0 and n / keep: every draw is one of them."""
    ce, valid = random_case(B=1)
    valid[:] = True
    weighting = RandomMatched(around=SKIP)
    signals = watch(weighting, ce, valid)
    count, total = signals.memory["histogram.count"], signals.memory["histogram.sum"]
    assert count[0].item() == 45  # floor(0.3 * 150)
    assert (count > 0).sum() == 2
    drawn = draw(count, total, torch.Size([1000]))
    kept = drawn[drawn > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 150 / 105))


def test_weights_are_blind_to_the_tokens() -> None:
    """The correlation with what the inner weighting looks at vanishes; the inner one's does not."""
    torch.manual_seed(0)
    ce, valid = random_case(B=8, S=500)
    valid[:] = True
    weighting = RandomMatched(around=TakesLoss())
    signals = watch(weighting, ce, valid)
    drawn = weighting.weights(signals)

    def correlation(x: Tensor, y: Tensor) -> float:
        return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()

    assert correlation(weighting.around.weights(signals), ce) > 0.99
    assert abs(correlation(drawn, ce)) < 5 / 12_000**0.5  # standard error 1 / sqrt(n)
    shuffled = shuffle(weighting.around.weights(signals), valid)
    assert abs(correlation(shuffled, ce)) < 5 / 12_000**0.5


def test_only_measured_targets_are_observed_and_old_ones_fade() -> None:
    weighting = RandomMatched(around=TakesLoss(), decay=0.5)
    memory = weighting.start_memory()

    def show(weight: float, *valid: bool) -> None:
        ce = torch.full((1, len(valid), 1), weight)
        sums = weighting.start_sums()
        valid_BSH = torch.tensor(valid).view(1, -1, 1)
        observe(weighting, Signals(valid_BSH, ce, memory=memory, sums=sums))
        remember(weighting, memory, sums)

    show(1.5, True, True, False)
    show(0.0, True, False, False)
    assert memory["histogram.count"].sum().item() == 2 * 0.5 + 1
    assert memory["histogram.count"][0].item() == 1
    assert memory["histogram.sum"].sum().item() == 3 * 0.5
    show(9.0, False, False)
    assert memory["histogram.count"].sum().item() == 2


def test_weights_outside_the_bins_go_to_the_outer_ones() -> None:
    weights = torch.tensor([0.0, 1e-30, 1e-4, 1.0, 999.0, 1e6])
    count, total = histogram(weights, torch.ones(6, dtype=torch.bool))
    assert count.nonzero().flatten().tolist() == [0, 1, 1 + BINS * 4 // 7, BINS]
    assert count[[0, 1, BINS]].tolist() == [1, 2, 2]
    torch.testing.assert_close(total[[1, BINS]], torch.tensor([1e-4, 1e6 + 999]))


@pytest.mark.parametrize("chance", [0.0, 1 - 2**-24])
def test_a_draw_never_falls_into_an_empty_bin(
    chance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least and the greatest number that torch.rand gives; bin 0 and the last are empty."""
    count, total = histogram(torch.tensor([2.0, 3.0, 3.0]), torch.ones(3, dtype=torch.bool))
    monkeypatch.setattr(torch, "rand", lambda shape, device: torch.full(shape, chance))
    drawn = draw(count, total, torch.Size([1]))
    torch.testing.assert_close(drawn, torch.tensor([3.0 if chance else 2.0]))


# memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [Shuffled, RandomMatched])
def test_the_inner_weighting_keeps_its_own_memory(control: type[Shuffled | RandomMatched]) -> None:
    weighting = control(around=control(around=CountsCalls()))
    memory = weighting.start_memory()
    assert {"around.around.asked", "around.around.shown"} <= memory.keys()
    sums = weighting.start_sums()
    signals = Signals(torch.ones(1, 2, 1, dtype=torch.bool), memory=memory, sums=sums)
    weighting.weights(signals)
    weighting.observe(signals)
    weighting.remember(memory, sums)
    assert memory["around.around.asked"].item() >= 1
    assert memory["around.around.shown"].item() == 1
