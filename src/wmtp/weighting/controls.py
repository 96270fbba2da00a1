"""``shuffled`` and ``random_matched``: the same weights, on targets chosen by chance.

What a weighting gains over these two is due to where it puts its weights; what they gain over
``baseline-mtp`` is due to weights being uneven at all.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, InstanceOf, SerializeAsAny
from torch import Tensor

from wmtp.loss import Scope
from wmtp.weighting.base import (
    Need,
    Signals,
    Weighting,
    mean_one,
    observe,
    remember,
    weights_of,
)

INNER = "around."
"""Before the names of what the inner weighting remembers and counts."""

BINS = 512
LEAST_LOG10, DECADES = -4, 7
"""Bins are even in log10 of the weight from 1e-4 to 1e3; further weights go to the outer ones."""


class Shuffled(Weighting):
    """The inner weights of each row, dealt out anew among its valid targets."""

    algorithm: ClassVar[str] = "shuffled"

    around: SerializeAsAny[InstanceOf[Weighting]] = Field(
        description="the weighting to compare with: algorithm: and its keys"
    )

    @property
    def scope(self) -> Scope:  # type: ignore[override]  # as the inner one
        """As the inner one, but always whole rows."""
        return "sequence" if self.around.scope == "token" else self.around.scope

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]  # as the inner one
        """As the inner one."""
        return self.around.needs

    @property
    def kept_fraction(self) -> float:
        """As the inner one: the zeros move, but stay as many."""
        return self.around.kept_fraction

    def weights(self, signals: Signals) -> Tensor:
        """The inner weights in random order, exactly the same numbers in every row."""
        return shuffle(inner_weights(self.around, signals), signals.valid_BSH)

    def start_memory(self) -> dict[str, Tensor]:
        """What the inner weighting remembers."""
        return outer(self.around.start_memory())

    def start_sums(self) -> dict[str, Tensor]:
        """What the inner weighting counts."""
        return outer(self.around.start_sums())

    def remember(self, memory: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Let the inner weighting remember."""
        remember(self.around, inner(memory), inner(sums))

    def observe(self, signals: Signals) -> None:
        """Let the inner weighting learn."""
        observe(self.around, inner_signals(self.around, signals))


class RandomMatched(Weighting):
    """Weights drawn from those that the inner weighting gave lately, blind to the tokens.

    Unlike ``shuffled`` it needs no cross-entropy to weigh with: each weight is drawn by itself
    from a running histogram, then ``mean_one``. Until something was observed, weights are 1.
    """

    algorithm: ClassVar[str] = "random_matched"
    scope: ClassVar[Scope] = "known"

    around: SerializeAsAny[InstanceOf[Weighting]] = Field(
        description="the weighting to compare with: algorithm: and its keys"
    )
    decay: float = Field(0.99, ge=0, lt=1, description="of the histogram, a step")

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]  # as the inner one
        """As the inner one: what it would have weighed is still observed."""
        return self.around.needs

    def weights(self, signals: Signals) -> Tensor:
        """Draws from the histogram, scaled to mean 1 over each row."""
        count, total = signals.memory["histogram.count"], signals.memory["histogram.sum"]
        return mean_one(draw(count, total, signals.valid_BSH.shape), signals.valid_BSH)

    def start_memory(self) -> dict[str, Tensor]:
        """An empty histogram, and what the inner weighting remembers."""
        return {**empty_histogram(), **outer(self.around.start_memory())}

    def start_sums(self) -> dict[str, Tensor]:
        """A step's histogram, and what the inner weighting counts."""
        return {**empty_histogram(), **outer(self.around.start_sums())}

    def observe(self, signals: Signals) -> None:
        """Add the weights that the inner weighting gives to the measured targets."""
        weights_BSH = inner_weights(self.around, signals)
        count, total = histogram(weights_BSH, signals.valid_BSH)
        signals.sums["histogram.count"].add_(count)
        signals.sums["histogram.sum"].add_(total)
        observe(self.around, inner_signals(self.around, signals))

    def remember(self, memory: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Take a step's histogram in; a step in which nothing was observed lets none fade."""
        kept = torch.where(sums["histogram.count"].any(), self.decay, 1)
        for name in ("histogram.count", "histogram.sum"):
            memory[name].mul_(kept).add_(sums[name])
        remember(self.around, inner(memory), inner(sums))


def empty_histogram() -> dict[str, Tensor]:
    """How often each bin was met, and the sum of what fell into it."""
    return {
        "histogram.count": torch.zeros(BINS + 1, dtype=torch.float32),
        "histogram.sum": torch.zeros(BINS + 1, dtype=torch.float32),
    }


# the inner weighting ------------------------------------------------------------------------------


def outer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inner weighting's tensors, under names of their own."""
    return {INNER + name: tensor for name, tensor in tensors.items()}


def inner(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that are the inner weighting's, as it calls them."""
    return {
        name.removeprefix(INNER): tensor
        for name, tensor in tensors.items()
        if name.startswith(INNER)
    }


def inner_signals(around: Weighting, signals: Signals) -> Signals:
    """The signals with the inner weighting's tensors, laid out as its scope promises."""
    own = signals.with_tensors_of(inner(signals.memory), inner(signals.sums))
    if around.scope != "token":
        return own
    ce = None if signals.ce is None else signals.ce.flatten(0, 1).unsqueeze(0)
    return own.of_positions(slice(None), ce)


def inner_weights(around: Weighting, signals: Signals) -> Tensor:
    """The inner weighting's weights of whole rows."""
    return weights_of(around, inner_signals(around, signals)).view_as(signals.valid_BSH)


# chance -------------------------------------------------------------------------------------------


def shuffle(weights_BSH: Tensor, valid_BSH: Tensor) -> Tensor:
    """Deal each row's weights out anew among its valid targets, every order equally likely."""
    valid_BR = valid_BSH.flatten(1)
    chance_BR = torch.rand(valid_BR.shape, device=valid_BR.device)
    # both orders put the valid targets first, so the n-th of one takes the weight of the n-th
    # of the other, and targets that are not valid change places among themselves
    order_BR = torch.where(valid_BR, chance_BR, torch.inf).argsort(1)
    place_BR = (~valid_BR).float().sort(dim=1, stable=True).indices
    weights_BR = torch.where(valid_BR, weights_BSH.flatten(1), 0)
    dealt_BR = torch.zeros_like(weights_BR).scatter_(1, place_BR, weights_BR.gather(1, order_BR))
    return dealt_BR.view_as(weights_BSH)


def histogram(weights_BSH: Tensor, valid_BSH: Tensor) -> tuple[Tensor, Tensor]:
    """``(count, sum)`` of the valid weights in each bin; bin 0 is for weights of exactly 0."""
    weights_R, valid_R = weights_BSH.flatten(), valid_BSH.flatten().float()
    place_R = (weights_R.clamp(min=10.0**LEAST_LOG10).log10() - LEAST_LOG10) * (BINS / DECADES)
    bin_R = torch.where(weights_R > 0, place_R.long().clamp(max=BINS - 1) + 1, 0)
    empty = weights_R.new_zeros(BINS + 1)
    return empty.index_add(0, bin_R, valid_R), empty.index_add(0, bin_R, weights_R * valid_R)


def draw(count: Tensor, total: Tensor, shape: torch.Size) -> Tensor:
    """Random weights as frequent as the histogram has them, each its bin's mean; else ones."""
    below = count.cumsum(0)
    point = torch.rand(shape, device=count.device) * below[-1]
    chosen = torch.searchsorted(below, point, right=True).clamp(max=BINS)
    mean = total / torch.where(count > 0, count, 1)
    return torch.where(below[-1] > 0, mean[chosen], 1)
