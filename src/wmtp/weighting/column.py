"""``column``: the data says what matters."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from wmtp.loss import Scope
from wmtp.weighting.base import Need, Signals, Weighting, mean_one


class Column(Weighting):
    """Weights read from the data's ``loss_weights``, one per target token."""

    algorithm: ClassVar[str] = "column"
    scope: ClassVar[Scope] = "known"
    needs: ClassVar[frozenset[Need]] = frozenset({"loss_weights"})
    normalize: bool = Field(
        True, description="scale each row to mean 1; false takes them as they are"
    )

    def weights(self, signals: Signals) -> Tensor:
        """The column, 0 where not valid."""
        if self.normalize:
            return mean_one(signals.loss_weights_BSH, signals.valid_BSH)
        return signals.loss_weights_BSH.float() * signals.valid_BSH
