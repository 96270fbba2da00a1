"""How problems are put to a model, and where its answer ends: data, shown in every result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from wmtp.evaluation.problems import Problem, Suite


@dataclass(frozen=True)
class PromptFormat:
    """A text around a problem.

    Attributes:
        template: ``{description}`` and ``{tests}``, those that may be shown a line each, are put
            in; nothing else is.
        stop: sequences that end an answer and do not belong to it.
    """

    template: str
    stop: tuple[str, ...]

    def prompt(self, problem: Problem) -> str:
        """What the model is to continue."""
        # not str.format: descriptions have braces, and so may templates
        tests = "\n".join(problem.shown_tests)
        parts = self.template.split("{description}")
        return problem.description.join(part.replace("{tests}", tests) for part in parts)

    def as_dict(self) -> dict[str, Any]:
        """As in a file of formats."""
        return {**asdict(self), "stop": list(self.stop)}


_PROGRAM_ENDS: Final = ('\n"""', "\nassert", "\nif __name__", "\nprint(", "<|endoftext|>")

FORMATS: Final[Mapping[Suite, PromptFormat]] = {
    "mbpp": PromptFormat('"""\n{description}\n{tests}\n"""\n', _PROGRAM_ENDS),
    "humaneval": PromptFormat(
        "{description}", ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "<|endoftext|>")
    ),
    "contest": PromptFormat('"""\n{description}\n"""\n', ('\n"""', "<|endoftext|>")),
}
"""MBPP as in training (``docs/data.md``) and in InCoder's and bigcode's evaluations; HumanEval with
the stop sequences of Chen et al. 2021 (arXiv:2107.03374); contests as in training."""
