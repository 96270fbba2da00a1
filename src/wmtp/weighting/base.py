"""What a weighting is: recipe keys as fields, and one method from signals to weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from wmtp.loss import Scope

Need = Literal["reference_ce", "loss_weights"]
"""What must be measured or read beforehand, aligned with the targets."""


@dataclass(frozen=True)
class Signals:
    """What is known about a chunk of targets ``[B, S, H]``; ``B = 1`` for scope ``token``.

    Attributes:
        valid_BSH: bool, where a target exists and counts.
        ce: cross-entropy in nats, float32; None for scope ``known``.
        reference_ce: the reference model's cross-entropy of the target token, float32 nats.
        loss_weights: the data's own weight of the target token, float32.
    """

    valid_BSH: Tensor
    ce: Tensor | None = None
    reference_ce: Tensor | None = None
    loss_weights: Tensor | None = None

    @property
    def ce_BSH(self) -> Tensor:
        """The trained model's cross-entropy, for scopes ``token`` and ``sequence``."""
        return _present(self.ce, "ce_BSH", "scope = 'token' or 'sequence'")

    @property
    def reference_ce_BSH(self) -> Tensor:
        """The reference model's cross-entropy, for who declares the need."""
        return _present(self.reference_ce, "reference_ce_BSH", "needs = {'reference_ce'}")

    @property
    def loss_weights_BSH(self) -> Tensor:
        """The data's own weights, for who declares the need."""
        return _present(self.loss_weights, "loss_weights_BSH", "needs = {'loss_weights'}")

    def of_rows(self, rows: slice, ce: Tensor | None) -> "Signals":
        """The signals of some rows of the batch."""
        return self._select(lambda signal: signal[rows], ce)

    def of_positions(self, positions: slice | Tensor, ce: Tensor | None) -> "Signals":
        """The signals of some of the ``B * S`` positions, as one row ``[1, n, H]``."""
        return self._select(lambda signal: signal.flatten(0, 1)[positions].unsqueeze(0), ce)

    def _select(self, pick: Callable[[Tensor], Tensor], ce: Tensor | None) -> "Signals":
        return Signals(
            valid_BSH=pick(self.valid_BSH),
            ce=ce,
            reference_ce=None if self.reference_ce is None else pick(self.reference_ce),
            loss_weights=None if self.loss_weights is None else pick(self.loss_weights),
        )


def _present(signal: Tensor | None, name: str, declaration: str) -> Tensor:
    if signal is None:
        raise ValueError(
            f"signals.{name} was not prepared: the weighting must declare {declaration}"
        )
    return signal


class Weighting(BaseModel, ABC):
    """The importance of every target. Fields are the recipe's keys; there is no state.

    A subclass says in ``scope`` what its weights depend on and in ``needs`` what must be measured
    beforehand, and maps signals to weights: float32, at least 0, without gradient, mean 1 over
    the valid targets of each row (``mean_one``), no device, file or logger touched.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    scope: ClassVar[Scope]
    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def weights(self, signals: Signals) -> Tensor:
        """Weights of the shape of ``signals.valid_BSH``."""


@torch.no_grad()
def weigh_chunk(
    weighting: Weighting, signals: Signals, ce: Tensor | None, part: slice | Tensor
) -> Tensor:
    """Call a weighting for the chunk of targets that the loss has come to (``loss.Weigh``)."""
    if weighting.scope == "token":
        return weighting.weights(signals.of_positions(part, ce))
    if isinstance(part, slice):
        return weighting.weights(signals.of_rows(part, ce))
    raise TypeError(f"scope {weighting.scope!r} takes a slice of rows, not positions {part!r}")


def mean_one(x_BSH: Tensor, valid_BSH: Tensor) -> Tensor:
    """Scale each row to mean 1 over its valid targets; 0 elsewhere; all ones if the sum is 0.

        mean_one(x) = x * n / sum(x)

    Args:
        x_BSH: raw importance, at least 0.
        valid_BSH: the targets that compete.

    Example:
        >>> mean_one(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[True, True]]]))
        tensor([[[0.5000, 1.5000]]])
    """
    x_BSH = torch.where(valid_BSH, x_BSH, 0).float()
    n_B = valid_BSH.sum((1, 2), keepdim=True)
    total_B = x_BSH.sum((1, 2), keepdim=True)
    usable_B = total_B > 0
    scaled_BSH = x_BSH * (n_B / torch.where(usable_B, total_B, 1))
    return torch.where(usable_B, scaled_BSH, valid_BSH.float())
