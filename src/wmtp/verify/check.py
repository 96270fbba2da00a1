"""What a comparison with an engine found, and what it may find."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        found: the largest difference, or how many were unequal.
        limit: the most that passes.
        detail: what else there is to say of it, in a line.
    """

    name: str
    found: float
    limit: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether what was found is within the limit; NaN never is."""
        return self.found <= self.limit


def logits_difference(ours_SV: Tensor, theirs_SV: Tensor) -> float:
    """Largest difference, in units of our largest logit where that is above 1.

    Float32 keeps seven digits of a number, whatever its size: a limit without a unit would ask
    more of a model with large logits.

    Example:
        >>> import torch
        >>> logits_difference(torch.tensor([[10.0, -20.0]]), torch.tensor([[10.0, -20.5]]))
        0.025
    """
    size = max(1.0, float(ours_SV.abs().max()))
    return float((ours_SV - theirs_SV).abs().max()) / size
