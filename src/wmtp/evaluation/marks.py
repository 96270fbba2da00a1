"""What a model was to reach, beside what it reached."""

from dataclasses import dataclass
from typing import Final

from wmtp.errors import ConfigError

SMALLER_IS_BETTER: Final = {"bits_per_byte": True, "tokens_per_second": False}
"""The marks that a recipe can set, and on which side of one a model is to be."""


@dataclass(frozen=True)
class Mark:
    """One mark and what was measured.

    Attributes:
        name: of the figure.
        mark: to be below or above.
        reached: None where it was not measured.
    """

    name: str
    mark: float
    reached: float | None

    @property
    def met(self) -> bool | None:
        """Whether the model is on the right side; None where nothing was measured."""
        if self.reached is None:
            return None
        beyond = self.mark - self.reached
        return beyond > 0 if SMALLER_IS_BETTER[self.name] else beyond < 0

    def line(self) -> str:
        """For a person.

        Example:
            >>> print(Mark("bits_per_byte", 0.685, 0.7021).line())
            bits_per_byte 0.7021, to be below 0.685: missed by 0.0171
            >>> print(Mark("tokens_per_second", 50, 61.5).line())
            tokens_per_second 61.5, to be above 50: met by 11.5
            >>> print(Mark("tokens_per_second", 50, None).line())
            tokens_per_second not measured, to be above 50: --suite speed measures it
        """
        side = "below" if SMALLER_IS_BETTER[self.name] else "above"
        wanted = f"to be {side} {self.mark:g}"
        if self.reached is None:
            suite = {"bits_per_byte": "perplexity", "tokens_per_second": "speed"}[self.name]
            return f"{self.name} not measured, {wanted}: --suite {suite} measures it"
        word = "met" if self.met else "missed"
        apart = abs(self.reached - self.mark)
        return f"{self.name} {self.reached:.4g}, {wanted}: {word} by {apart:.3g}"

    def as_dict(self) -> dict[str, float | bool | None]:
        """Ready for JSON."""
        return {"mark": self.mark, "reached": self.reached, "met": self.met}


def read_marks(settings: object, place: str) -> dict[str, float]:
    """The marks in a recipe's or a run's settings, as they were read from YAML.

    Raises:
        ConfigError: they are no numbers above 0, or there is no such mark.
    """
    section: object = settings
    for key in ("evaluation", "marks"):
        section = section.get(key) if isinstance(section, dict) else None
    if section is None:
        return {}
    faulty = f"{place}: evaluation.marks must hold {' and '.join(SMALLER_IS_BETTER)}, above 0."
    if not isinstance(section, dict):
        raise ConfigError(faulty)
    marks = {}
    for name, value in section.items():
        if name not in SMALLER_IS_BETTER or isinstance(value, bool):
            raise ConfigError(faulty)
        if value is None:
            continue
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(faulty)
        marks[name] = float(value)
    return marks


def compare_with_marks(
    marks: dict[str, float], bits_per_byte: float | None, tokens_per_second: float | None
) -> list[Mark]:
    """Each mark beside what was reached."""
    reached = {"bits_per_byte": bits_per_byte, "tokens_per_second": tokens_per_second}
    return [Mark(name, mark, reached[name]) for name, mark in marks.items()]
