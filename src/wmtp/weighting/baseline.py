"""``baseline-mtp``: every target counts the same."""

from typing import ClassVar

from torch import Tensor

from wmtp.loss import Scope
from wmtp.weighting.base import Signals, Weighting


class Baseline(Weighting):
    """Plain multi-token prediction: ``w = 1``."""

    algorithm: ClassVar[str] = "baseline-mtp"
    scope: ClassVar[Scope] = "known"

    def weights(self, signals: Signals) -> Tensor:
        """Ones where valid."""
        return signals.valid_BSH.float()
