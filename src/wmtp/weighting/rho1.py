"""``rho1-wmtp``: effort goes where a frozen reference model does better."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from wmtp.loss import Scope
from wmtp.weighting.base import Need, Signals, Weighting

FRACTION_UNITS = 1_000_000  # skip_fraction is counted in millionths, so that floor() is exact
BISECTION_STEPS = 40


class Rho1(Weighting):
    """Weigh a target by its excess cross-entropy over a reference model.

        d[s, h] = ce[s, h] - r[s + 1 + h]        e = d - mean of d over its head, or |...|

    ``r`` is the reference's next-token cross-entropy of the target token. ``weighted`` turns ``e``
    into a capped softmax of mean 1, ``token_skip`` keeps the largest and drops the rest.

    Source:
        Lin et al. 2024 (arXiv:2404.07965) for the excess score and its selection.
    """

    algorithm: ClassVar[str] = "rho1-wmtp"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_ce"})

    mode: Literal["weighted", "token_skip"] = Field(
        "weighted", description="softmax of the score, or keep the highest scores"
    )
    score: Literal["excess", "absolute"] = Field("excess", description="e = d, or e = |d|")
    center: Literal["head", "none"] = Field(
        "head", description="subtract each head's mean over the row, so that heads do not compete"
    )
    compete: Literal["sequence", "heads"] = Field(
        "sequence", description="who shares the weight: a row's targets, or the heads of a position"
    )
    temperature: float = Field(1.0, gt=0, description="nats; higher is closer to uniform")
    max_weight: float = Field(5.0, ge=1, description="no weight exceeds this")
    min_ce_diff: float = Field(0.0, ge=0, description="nats; a smaller score counts as 0")
    skip_fraction: float = Field(0.3, ge=0, lt=1, description="share of targets that is dropped")

    @property
    def scope(self) -> Scope:  # type: ignore[override]  # a class constant elsewhere; here the recipe decides
        """``token`` only where heads compete by themselves and no mean over the row is needed."""
        alone = self.mode == "weighted" and self.compete == "heads" and self.center == "none"
        return "token" if alone else "sequence"

    @property
    def kept_fraction(self) -> float:
        """``1 - skip_fraction`` for ``token_skip``."""
        if self.mode != "token_skip":
            return 1.0
        return 1 - round(self.skip_fraction * FRACTION_UNITS) / FRACTION_UNITS

    def weights(self, signals: Signals) -> Tensor:
        """Weights of mean 1 over each row's valid targets."""
        score_BSH = self.scores(signals)
        if self.mode == "token_skip":
            return kept_weights(score_BSH, signals.valid_BSH, self.skip_fraction)
        if self.compete == "heads":
            return softmax_weights(score_BSH, signals.valid_BSH, self.temperature, self.max_weight)
        flat_BR, valid_BR = score_BSH.flatten(1), signals.valid_BSH.flatten(1)
        weights_BR = softmax_weights(flat_BR, valid_BR, self.temperature, self.max_weight)
        return weights_BR.view_as(score_BSH)

    def scores(self, signals: Signals) -> Tensor:
        """The score ``e`` of every target, float32; what it is where not valid does not matter."""
        difference_BSH = signals.ce_BSH.float() - signals.reference_ce_BSH.float()
        difference_BSH = torch.where(signals.valid_BSH, difference_BSH, 0)
        if self.center == "head":
            count_B1H = signals.valid_BSH.sum(1, keepdim=True).clamp(min=1)
            difference_BSH = difference_BSH - difference_BSH.sum(1, keepdim=True) / count_B1H
        score_BSH = difference_BSH.abs() if self.score == "absolute" else difference_BSH
        return torch.where(score_BSH.abs() < self.min_ce_diff, 0, score_BSH)


def softmax_weights(score: Tensor, valid: Tensor, temperature: float, max_weight: float) -> Tensor:
    """Capped softmax of mean 1 over the last dimension's valid entries.

        p = n * softmax(score / temperature);   w = min(max_weight, c * p),  c such that mean w = 1

    ``c`` is found by bisecting ``log c`` a fixed number of times (no host sync) and then computed
    exactly from the entries left below the cap.

    Example:
        >>> e = torch.tensor([5 / 6, -1.0, -2 / 3, 1.0, -1 / 6])
        >>> softmax_weights(e, torch.ones(5, dtype=torch.bool), 1.0, 1.5)
        tensor([1.5000, 0.4258, 0.5943, 1.5000, 0.9798])
    """
    n = valid.sum(-1, keepdim=True)
    logits = torch.where(valid, score / temperature, -torch.inf)
    safe = torch.where(n > 0, logits, 0)  # a row without valid targets must not make NaN
    log_p = torch.log_softmax(safe, -1) + n.clamp(min=1).log()
    log_cap = math.log(max_weight)

    low = torch.zeros_like(log_p[..., :1])
    smallest = torch.where(valid, log_p, torch.inf).amin(-1, keepdim=True)
    high = torch.where(n > 0, log_cap - smallest, 0).clamp(min=0)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        mean = (log_p + middle).clamp(max=log_cap).exp().sum(-1, keepdim=True) / n.clamp(min=1)
        low, high = torch.where(mean < 1, middle, low), torch.where(mean < 1, high, middle)

    capped = valid & (log_p + high >= log_cap)
    left = (n - max_weight * capped.sum(-1, keepdim=True)).clamp(min=0)
    free = torch.where(valid & ~capped, log_p, -torch.inf)
    any_free = torch.isfinite(free).any(-1, keepdim=True)
    share = torch.softmax(torch.where(any_free, free, 0), -1)
    weights = torch.where(capped, max_weight, (left * share).clamp(max=max_weight))
    return torch.where(valid, weights, 0)


def kept_weights(score_BSH: Tensor, valid_BSH: Tensor, skip_fraction: float) -> Tensor:
    """Weight ``n / keep`` for the ``keep = n - floor(skip_fraction * n)`` highest scores, else 0.

    Ties are kept in order: earlier position first, then lower head.

    Example:
        >>> e = torch.tensor([[[3.0, 1.0], [2.0, 4.0]]])
        >>> kept_weights(e, torch.ones(1, 2, 2, dtype=torch.bool), 0.25)
        tensor([[[1.3333, 0.0000],
                 [1.3333, 1.3333]]])
    """
    score_BR = torch.where(valid_BSH, score_BSH, -torch.inf).flatten(1)
    n_B1 = valid_BSH.flatten(1).sum(1, keepdim=True)
    keep_B1 = n_B1 - n_B1 * round(skip_fraction * FRACTION_UNITS) // FRACTION_UNITS
    order_BR = score_BR.sort(dim=1, descending=True, stable=True).indices
    rank_R = torch.arange(order_BR.shape[1], device=order_BR.device).expand_as(order_BR)
    rank_BR = torch.empty_like(order_BR).scatter_(1, order_BR, rank_R)
    kept_BR = (rank_BR < keep_B1) & valid_BSH.flatten(1)
    return (kept_BR * (n_B1 / keep_B1.clamp(min=1))).view_as(score_BSH)
