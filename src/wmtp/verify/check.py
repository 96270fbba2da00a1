"""One figure of another engine beside ours."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One figure of an engine beside ours.

    Attributes:
        name: what was compared.
        found: what was measured.
        limit: most it may be (for differences and counts).
        detail: a few words for the table.

    Example:
        >>> Check("trunk", 0.002, 0.01).passed, Check("trunk", float("nan"), 0.01).passed
        (True, False)
    """

    name: str
    found: float
    limit: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is within its limit; what is not a number is not."""
        return self.found <= self.limit
