"""Problems in the schema of CodeContests: one row gives many documents, one for each program."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from wmtp.data.documents import BadLines, Document, Segment, UnusableError
from wmtp.data.json_lines import shown, text_of, unix_newlines
from wmtp.data.splits import CONTEST_VALIDATION_SHARE, Split, in_split

CONTEST_KEYS = frozenset({"name", "description", "solutions"})

# CodeContests: 0 unknown, 1 Python 2, 2 C++, 3 Python 3, 4 Java. A judge of today runs Python 3.
PYTHON_LANGUAGES = (3, "PYTHON3")

Solutions = Literal["correct", "all"]

OTHER_LANGUAGE = "program in another language"
DUPLICATE = "duplicate program"
CONTRADICTORY = "program that is both correct and incorrect"


@dataclass(frozen=True)
class Program:
    """What somebody handed in.

    Attributes:
        place: where it stands, for messages and as its document's name.
        language: its code or name, None where the data says nothing: then it is Python 3.
        text: not checked yet.
    """

    place: str
    language: object
    text: object


@dataclass(frozen=True)
class ContestProblem:
    """A problem and all programs that were handed in for it."""

    name: str
    description: str
    correct: tuple[Program, ...]
    incorrect: tuple[Program, ...]


def parse_contest_row(row: dict[str, Any], place: str) -> ContestProblem:
    """A problem from ``{"name", "description", "solutions", "incorrect_solutions"}``.

    Programs are ``{"language": [...], "solution": [...]}``, or a list of ``{"language",
    "solution"}``, or a list of texts. ``incorrect_solutions`` may be missing.

    Raises:
        UnusableError: a key is missing or its value is of the wrong type.

    Source:
        Li et al. 2022, "Competition-level code generation with AlphaCode" (arXiv:2203.07814).
    """
    return ContestProblem(
        name=text_of(row, "name"),
        description=unix_newlines(text_of(row, "description")),
        correct=_programs(row, "solutions", place),
        incorrect=_programs(row, "incorrect_solutions", place),
    )


def contest_prompt(description: str) -> str:
    '''What is read before a program: the description as a docstring.

    Example:
        >>> print(contest_prompt("Add two numbers."), end="")
        """
        Add two numbers.
        """
    '''
    return f'"""\n{description}\n"""\n'


def contest_documents(
    problem: ContestProblem, split: Split, solutions: Solutions, bad: BadLines
) -> Iterator[Document]:
    """One document for each program of a split: the description to be read, the program learned.

    Programs are compared after newlines are made the same. Of equal ones the first is used; one
    that is among the correct and among the incorrect is not used at all. A program's split is
    decided by a hash of problem and program, so that training and validation share problems but
    no program.

    Args:
        problem: of ``parse_contest_row``.
        split: which programs.
        solutions: ``correct`` alone, with no reward; or ``all``, with reward 1 or 0, competing
            within their problem.
        bad: takes the programs that cannot be read, and counts those that are not used.
    """
    # programs that were not asked for matter only as contradictions, and are not told
    bad_incorrect = bad if solutions == "all" else BadLines()
    correct = _distinct(problem, problem.correct, split, bad)
    incorrect = _distinct(problem, problem.incorrect, split, bad_incorrect)
    contradictory = correct.keys() & incorrect.keys()
    if contradictory:
        bad.passed_over[CONTRADICTORY] += len(contradictory)
    prompt = Segment(contest_prompt(problem.description), wanted=False)
    if solutions == "correct":
        for text, place in correct.items():
            if text not in contradictory:
                yield Document(place, (prompt, Segment(text)))
        return
    for places, reward in ((correct, 1.0), (incorrect, 0.0)):
        for text, place in places.items():
            if text not in contradictory:
                yield Document(place, (prompt, Segment(text)), reward=reward, group=problem.name)


def _distinct(
    problem: ContestProblem, programs: tuple[Program, ...], split: Split, bad: BadLines
) -> dict[str, str]:
    """The Python programs of a split, each with the place where it stands first."""
    places: dict[str, str] = {}
    for program in programs:
        with bad.at(program.place):
            text = unix_newlines(text_of({"program": program.text}, "program"))
            key = f"{problem.name}\n{text}"
            if not in_split(key, split, CONTEST_VALIDATION_SHARE):
                continue
            if program.language is not None and program.language not in PYTHON_LANGUAGES:
                bad.passed_over[OTHER_LANGUAGE] += 1
            elif text in places:
                bad.passed_over[DUPLICATE] += 1
            else:
                places[text] = program.place
    return places


def _programs(row: dict[str, Any], key: str, place: str) -> tuple[Program, ...]:
    value = row.get(key)
    if value is None and key != "solutions":
        return ()
    if isinstance(value, dict):
        texts, languages = value.get("solution"), value.get("language")
        if not isinstance(texts, list):
            raise UnusableError(f"{key}.solution is not a list", shown(texts))
        if languages is None:
            languages = [None] * len(texts)
        if not isinstance(languages, list) or len(languages) != len(texts):
            raise UnusableError(f"{key}.language is not a list as long as {key}.solution")
        pairs = list(zip(languages, texts, strict=True))
    elif isinstance(value, list):
        pairs = [
            (one.get("language"), one.get("solution")) if isinstance(one, dict) else (None, one)
            for one in value
        ]
    else:
        raise UnusableError(f"{key} is not a list of programs", shown(value))
    return tuple(
        Program(f"{place} {key}[{index}]", language, text)
        for index, (language, text) in enumerate(pairs)
    )
