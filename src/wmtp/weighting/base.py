"""What a weighting is: recipe keys as fields, and one method from signals to weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from wmtp.errors import ConfigError, WmtpError
from wmtp.loss import Scope

Need = Literal["reference_ce", "loss_weights", "values"]
"""What must be measured or read beforehand; ``values`` brings ``rewards`` and ``last`` along."""


@dataclass(frozen=True)
class Signals:
    """What is known about a chunk of targets ``[B, S, H]``; ``B = 1`` for scope ``token``.

    Attributes:
        valid_BSH: bool, where a target exists and counts.
        ce: cross-entropy in nats, float32; None for scope ``known``.
        reference_ce: the reference model's cross-entropy of the target token, float32 nats.
        loss_weights: the data's own weight of the target token, float32.
        values: the value head's estimate ``V_s`` at every position, float32 ``[B, S]``.
        rewards: reward ``r`` of the target token, float32; NaN in a document without a reward.
        last: bool, the target token is the last wanted one of its document.
        memory: what the weighting has learned in earlier steps (``Weighting.start_memory``), on
            the device; nobody changes it during a step.
        sums: what it counts in this one (``Weighting.start_sums``), on the device.
    """

    valid_BSH: Tensor
    ce: Tensor | None = None
    reference_ce: Tensor | None = None
    loss_weights: Tensor | None = None
    values: Tensor | None = None
    rewards: Tensor | None = None
    last: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)

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

    @property
    def values_BS(self) -> Tensor:
        """The value head's estimates, for who declares the need."""
        return _present(self.values, "values_BS", "needs = {'values'}")

    @property
    def rewards_BSH(self) -> Tensor:
        """The target tokens' rewards, for who declares the need of values."""
        return _present(self.rewards, "rewards_BSH", "needs = {'values'}")

    @property
    def last_BSH(self) -> Tensor:
        """Where a document's wanted tokens end, for who declares the need of values."""
        return _present(self.last, "last_BSH", "needs = {'values'}")

    def of_rows(self, rows: slice, ce: Tensor | None) -> "Signals":
        """The signals of some rows of the batch."""
        return self._select(lambda signal: signal[rows], ce)

    def of_positions(self, positions: slice | Tensor, ce: Tensor | None) -> "Signals":
        """The signals of some of the ``B * S`` positions, as one row ``[1, n, H]``."""
        return self._select(lambda signal: signal.flatten(0, 1)[positions].unsqueeze(0), ce)

    def with_tensors_of(
        self, memory: Mapping[str, Tensor], sums: Mapping[str, Tensor]
    ) -> "Signals":
        """The same signals for a weighting that remembers and counts something else."""
        return replace(self, memory=memory, sums=sums)

    def _select(self, pick: Callable[[Tensor], Tensor], ce: Tensor | None) -> "Signals":
        def pick_if_any(signal: Tensor | None) -> Tensor | None:
            return None if signal is None else pick(signal)

        return replace(
            self,
            valid_BSH=pick(self.valid_BSH),
            ce=ce,
            reference_ce=pick_if_any(self.reference_ce),
            loss_weights=pick_if_any(self.loss_weights),
            values=pick_if_any(self.values),
            rewards=pick_if_any(self.rewards),
            last=pick_if_any(self.last),
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

    What must last from step to step is declared in ``start_memory``; the training loop keeps these
    tensors, saves them in every checkpoint and hands them in as ``signals.memory``. What a step
    teaches is declared in ``start_sums``: ``weights`` and ``observe`` add to ``signals.sums`` in
    place, and at the step's end ``remember`` takes the sums over all micro-batches and ranks into
    the memory. So nothing depends on how a step is cut, or on how many ranks share it; and nothing
    is ever read back from the device.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    scope: ClassVar[Scope]
    needs: ClassVar[frozenset[Need]] = frozenset()
    algorithm: ClassVar[str] = "(unnamed)"
    """What a recipe calls it; ``find_weighting`` gives a user's own class the name of its file."""

    @property
    def kept_fraction(self) -> float:
        """Most of a row's valid targets that get a weight above 0, rounded up; above 0.

        A promise: where counting would make the device wait, the loss leaves the rest undone.
        """
        return 1.0

    @abstractmethod
    def weights(self, signals: Signals) -> Tensor:
        """Weights of the shape of ``signals.valid_BSH``."""

    def start_memory(self) -> dict[str, Tensor]:
        """What is remembered before the first step, on the CPU; nothing by default."""
        return {}

    def start_sums(self) -> dict[str, Tensor]:
        """Zeros to add to in each step, float tensors on the CPU; none by default."""
        return {}

    def remember(self, memory: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Take a step's sums, those of all ranks, into the memory in place; once per step."""

    def observe(self, signals: Signals) -> None:
        """Learn from what the loss measured, once per micro-batch; ``valid`` is what it measured.

        A weighting that only needs what its own ``weights`` sees has no use for this.
        """

    @model_serializer(mode="wrap")
    def _with_its_name(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"algorithm": self.algorithm, **fields(self)}


@torch.no_grad()
def weigh_chunk(
    weighting: Weighting, signals: Signals, ce: Tensor | None, part: slice | Tensor
) -> Tensor:
    """Call a weighting for the chunk of targets that the loss has come to (``loss.Weigh``).

    Raises:
        ConfigError: a user's own weighting failed, or gave something else than weights.
    """
    if weighting.scope == "token":
        return weights_of(weighting, signals.of_positions(part, ce))
    if isinstance(part, slice):
        return weights_of(weighting, signals.of_rows(part, ce))
    raise TypeError(f"scope {weighting.scope!r} takes a slice of rows, not positions {part!r}")


def weights_of(weighting: Weighting, signals: Signals) -> Tensor:
    """``weighting.weights(signals)``, with a fault in a user's own file told in one line.

    Raises:
        ConfigError: the user's ``weights`` raised, or its result has another shape.
    """
    weights = _told_plainly(weighting, "weights", weighting.weights, signals)
    if not isinstance(weights, Tensor) or weights.shape != signals.valid_BSH.shape:
        found = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ConfigError(
            f"weighting.algorithm {weighting.algorithm}: weights(signals) gave {found}, but a "
            f"tensor {list(signals.valid_BSH.shape)} is needed, one weight for every target."
        )
    return weights


@torch.no_grad()
def remember(
    weighting: Weighting, memory: Mapping[str, Tensor], sums: Mapping[str, Tensor]
) -> None:
    """``weighting.remember(memory, sums)``, with a fault in a user's own file told in one line.

    Raises:
        ConfigError: the user's ``remember`` raised.
    """
    _told_plainly(weighting, "remember", weighting.remember, memory, sums)


@torch.no_grad()
def observe(weighting: Weighting, signals: Signals) -> None:
    """``weighting.observe(signals)``, with a fault in a user's own file told in one line.

    Raises:
        ConfigError: the user's ``observe`` raised.
    """
    _told_plainly(weighting, "observe", weighting.observe, signals)


def _told_plainly(
    weighting: Weighting, name: str, method: Callable[..., Any], *arguments: Any
) -> Any:
    try:
        return method(*arguments)
    except (WmtpError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a user's file may fail in any way; it is named and passed on
        if not weighting.algorithm.endswith(".py"):
            raise  # our own fault, not the user's
        raise ConfigError(
            f"weighting.algorithm {weighting.algorithm}: {name}() raised "
            f"{type(error).__name__}: {error}"
        ) from error


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
