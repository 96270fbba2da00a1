"""Where in a JSON record the text lies: ``documents[].text[][].sentence``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from wmtp.corpus.readers.reader import UnreadableError

EACH: Final = "[]"
"""A step into every element of an array."""

_STEP = re.compile(r"\[\]|[^.\[\]]+")
_PATH = re.compile(r"(?:[^.\[\]]+|\[\])(?:\[\]|\.[^.\[\]]+)*")


@dataclass(frozen=True)
class JsonPath:
    """A path that is cut at its first array, whose elements are the records.

    Attributes:
        text: as it was written.
        records: steps to the array of records, ``EACH`` the last; none: the whole file is one.
        inside: steps from a record to its texts.
    """

    text: str
    records: tuple[str, ...]
    inside: tuple[str, ...]


def parse_path(text: str, within_record: bool = False) -> JsonPath:
    """Read a path.

    Args:
        text: names of keys with dots between, ``[]`` behind what is an array.
        within_record: the record is given, such as a line of JSONL; all steps lie inside.

    Raises:
        ValueError: it is no path.

    Example:
        >>> parse_path("documents[].text[][].sentence").records
        ('documents', '[]')
        >>> parse_path("documents[].text[][].sentence").inside
        ('text', '[]', '[]', 'sentence')
    """
    if not _PATH.fullmatch(text):
        raise ValueError(f"{text!r} is no path such as documents[].text[][].sentence")
    steps = tuple(_STEP.findall(text))
    cut = steps.index(EACH) + 1 if EACH in steps and not within_record else 0
    return JsonPath(text, steps[:cut], steps[cut:])


def texts_at(value: Any, steps: tuple[str, ...]) -> Iterator[str]:
    """The texts that steps lead to, in order; what is absent, null or blank is none.

    Raises:
        UnreadableError: there is something else than text, or than an array or object on the way.

    Example:
        >>> list(texts_at({"text": [[{"s": "가"}, {"s": "나"}], [{"s": "다"}]]},
        ...               ("text", "[]", "[]", "s")))
        ['가', '나', '다']
    """
    if value is None:
        return
    if not steps:
        if not isinstance(value, str):
            raise UnreadableError("a value that should be text is not")
        if value and not value.isspace():
            yield value
    elif steps[0] == EACH:
        if not isinstance(value, list):
            raise UnreadableError("a value that should be an array is not")
        for inner in value:
            yield from texts_at(inner, steps[1:])
    else:
        if not isinstance(value, dict):
            raise UnreadableError("a value that should be an object is not")
        yield from texts_at(value.get(steps[0]), steps[1:])


def text_at(value: Any, path: JsonPath, join: str) -> str:
    """All texts of a record in one.

    Raises:
        UnreadableError: there is none, or see ``texts_at``.
    """
    text = join.join(texts_at(value, path.inside))
    if not text:
        raise UnreadableError(f"no text at {path.text}")
    return text
