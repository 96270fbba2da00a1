"""``critic-wmtp``: effort goes to tokens after which things went better than expected."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from wmtp.loss import Scope
from wmtp.weighting.advantages import generalized_advantages
from wmtp.weighting.base import Need, Signals, Weighting, mean_one
from wmtp.weighting.value_loss import (
    SumAndCount,
    ValueLoss,
    bce_loss,
    end_positions,
    logistic_loss,
    mse_loss,
    taught_positions,
)

SMALLEST_SIGMA = 1e-4
"""Below it, differences between advantages are float32's rounding of the moments."""


class Stage1(BaseModel):
    """Training the value head before the model, on the frozen trunk."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    max_steps: int = Field(200, ge=1, le=10**12, description="optimizer steps at most")
    batch_size: int = Field(8, ge=1, le=2**20, description="documents per step, or pairs of them")
    max_length: int | None = Field(
        None,
        ge=2,
        le=2**24,
        description="tokens of a document that are read; default: data.train.max_length",
    )
    eval_interval: int = Field(
        50, ge=1, le=10**12, description="steps between looks at held-out documents"
    )
    patience: int = Field(
        3, ge=1, le=10**6, description="looks without improvement before it stops early"
    )
    min_delta: float = Field(0.0, ge=0, description="a smaller improvement is none")


class Critic(Weighting):
    """Weigh a target by the advantage of its token, as a value head on the trunk sees it.

        z = clip((A_{s+1+h} - mu) / sigma, -c, c)        w = mean_one(exp(z / beta))

    ``A`` is the generalized advantage, see ``advantages.py``; ``mu`` and ``sigma`` are running
    moments of ``A`` over all valid targets. As each row has mean 1, ``sigma`` decides how uneven
    its weights are, and ``mu`` only where clipping begins.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438) for ``A``; Peng et al. 2019 (arXiv:1910.00177) for
        ``exp(A / beta)`` as the weight of a log-likelihood.
    """

    algorithm: ClassVar[str] = "critic-wmtp"
    scope: ClassVar[Scope] = "known"
    needs: ClassVar[frozenset[Need]] = frozenset({"values"})

    gamma: float = Field(0.99, ge=0, le=1, description="discount per token")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="lambda: 0 trusts the next value, 1 the rewards alone"
    )
    beta: float = Field(1.0, gt=0, description="higher is closer to uniform")
    clip: float = Field(3.0, gt=0, description="c, standard deviations; none counts beyond")
    decay: float = Field(0.99, ge=0, lt=1, description="of the running moments, a step")
    spread: Literal["terminal", "uniform"] = Field(
        "terminal", description="the reward lies on the last wanted token, or in parts on each"
    )
    reward: Literal["pairs", "column", "model"] = Field(
        "pairs", description="right and wrong solutions, a column of the data, a reward model"
    )
    value_loss: ValueLoss = Field("pairwise", description="what teaches the value head")
    auxiliary_loss_coef: float = Field(
        0.1, ge=0, description="factor of the value head's loss while the model trains"
    )
    auxiliary_into_trunk: bool = Field(
        False, description="let the value head's gradient reach the trunk"
    )
    value_head: str | None = Field(
        None, description="folder of a trained value head; stage 1 is then left out"
    )
    stage1: Stage1 = Field(Stage1(), description="how the value head is trained first")

    @model_validator(mode="after")
    def _value_is_that_of_the_end(self) -> "Critic":
        if self.value_loss != "mse" and self.spread != "terminal":
            raise ValueError(
                f"value_loss '{self.value_loss}' estimates the reward that the document ends with, "
                f"but spread is '{self.spread}'; use spread terminal, or value_loss mse"
            )
        return self

    @property
    def value_output(self) -> Literal["linear", "sigmoid"]:
        """What the value head's last step must be."""
        return "sigmoid" if self.value_loss == "bce" else "linear"

    def weights(self, signals: Signals) -> Tensor:
        """Weights of mean 1 over each row, by the moments of the steps before; 1 in the first."""
        advantages_BSH, _ = self.advantages(signals)
        add_moment_sums(signals.sums, advantages_BSH, signals.valid_BSH)
        mu, sigma = read_moments(signals.memory)
        weights_BSH = advantage_weights(
            advantages_BSH, signals.valid_BSH, mu, sigma, clip=self.clip, beta=self.beta
        )
        known = signals.memory["advantage.weight"] > 0
        return torch.where(known, weights_BSH, signals.valid_BSH.float())

    def advantages(self, signals: Signals) -> tuple[Tensor, Tensor]:
        """``(advantages_BSH, returns_BS)`` of the signals' values and rewards."""
        return generalized_advantages(
            signals.values_BS,
            signals.rewards_BSH,
            signals.last_BSH,
            self.gamma,
            self.gae_lambda,
        )

    def start_memory(self) -> dict[str, Tensor]:
        """The running moments, with nothing in them yet."""
        return {
            f"advantage.{name}": torch.zeros((), dtype=torch.float32)
            for name in ("mean", "square", "weight")
        }

    def start_sums(self) -> dict[str, Tensor]:
        """Sum, sum of squares and number of the advantages of a step."""
        return {
            f"advantage.{name}": torch.zeros((), dtype=torch.float32)
            for name in ("total", "square", "count")
        }

    def remember(self, memory: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Take a step's advantages into the running moments."""
        update_moments(memory, sums, decay=self.decay)

    def taught(self, signals: Signals) -> Tensor:
        """Where a stream of documents has something for the value head to learn, bool ``[B, S]``.

        It needs no values, so that a step's count is known before its first micro-batch.
        """
        if self.value_loss == "pairwise":
            return end_positions(signals) & taught_positions(signals)
        return taught_positions(signals)

    def value_head_loss(self, scores_BS: Tensor, signals: Signals) -> SumAndCount:
        """What the value head has to learn from a stream of documents, as a sum and a count.

        Args:
            scores_BS: the head's scores, with their gradient: the values, or what the sigmoid
                turns into them (``value_output``).
            signals: with the values that these scores gave; no gradient flows through them.
        """
        if self.value_loss == "pairwise":
            return logistic_loss(scores_BS, signals.rewards_BSH, end_positions(signals))
        _, returns_BS = self.advantages(signals)
        loss = mse_loss if self.value_loss == "mse" else bce_loss
        return loss(scores_BS, returns_BS, taught_positions(signals))


def advantage_weights(
    advantages_BSH: Tensor,
    valid_BSH: Tensor,
    mu: Tensor | float,
    sigma: Tensor | float,
    *,
    clip: float,
    beta: float,
) -> Tensor:
    """``mean_one`` over the row of ``exp(clip((A - mu) / sigma, -c, c) / beta)``.

    The largest exponent of a row is taken out before ``exp``, which changes nothing after
    ``mean_one`` and keeps a small ``beta`` finite.

    Example:
        >>> A = torch.tensor([[[0.7183, 0.5554], [0.5554, 0.7], [0.7, 0.0]]])
        >>> valid = torch.tensor([[[True, True], [True, True], [True, False]]])
        >>> advantage_weights(A, valid, mu=0.0, sigma=0.5, clip=3.0, beta=1.0)
        tensor([[[1.1436, 0.8256],
                 [0.8256, 1.1025],
                 [1.1025, 0.0000]]])
    """
    exponents_BSH = ((advantages_BSH - mu) / sigma).clamp(-clip, clip) / beta
    exponents_BSH = torch.where(valid_BSH, exponents_BSH, -torch.inf)
    largest_B11 = exponents_BSH.amax((1, 2), keepdim=True)
    finite_B11 = torch.where(largest_B11.isneginf(), 0, largest_B11)  # a row with no valid target
    return mean_one((exponents_BSH - finite_B11).exp(), valid_BSH)


def add_moment_sums(sums: Mapping[str, Tensor], advantages_BSH: Tensor, valid_BSH: Tensor) -> None:
    """Add sum, sum of squares and count over the valid targets, in place."""
    kept_BSH = torch.where(valid_BSH, advantages_BSH, 0)
    sums["advantage.total"].add_(kept_BSH.sum())
    sums["advantage.square"].add_(kept_BSH.square().sum())
    sums["advantage.count"].add_(valid_BSH.sum())


def update_moments(
    memory: Mapping[str, Tensor], sums: Mapping[str, Tensor], *, decay: float
) -> None:
    """Take sums into the running moments in place; without any target they stay as they are.

        m <- decay * m + (1 - decay) * sum / count         weight <- decay * weight + (1 - decay)

    ``m / weight`` is the moment: dividing by the weight gathered so far (Adam's correction) keeps
    the first steps from being damped by the zeros it all began with.
    """
    count = sums["advantage.count"]
    seen, divisor = count > 0, count.clamp(min=1)
    new = {
        "mean": sums["advantage.total"] / divisor,
        "square": sums["advantage.square"] / divisor,
        "weight": torch.ones_like(count),
    }
    for name, value in new.items():
        moment = memory[f"advantage.{name}"]
        moment.copy_(torch.where(seen, decay * moment + (1 - decay) * value, moment))


def read_moments(memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """``(mu, sigma)`` of the running moments; ``sigma`` at least ``SMALLEST_SIGMA``."""
    weight = memory["advantage.weight"]
    divisor = torch.where(weight > 0, weight, 1)
    mu = memory["advantage.mean"] / divisor
    variance = memory["advantage.square"] / divisor - mu.square()
    return mu, variance.clamp(min=SMALLEST_SIGMA**2).sqrt()
