"""One line of a JSONL file becomes one document."""

import json
import math
import reprlib
from typing import Any

from wmtp.data.documents import (
    NO_ORIGIN,
    Document,
    Origin,
    Segment,
    Span,
    TokenDocument,
    UnusableError,
)

WEIGHT_KEYS = ("loss_weights", "loss_weight", "loss_scale")
REWARD_KEYS = ("reward", "is_correct")
COMPLETION_KEYS = ("completion", "response")
MBPP_KEYS = frozenset({"task_id", "text", "code", "test_list"})
HUMANEVAL_KEYS = frozenset({"task_id", "prompt", "canonical_solution", "entry_point", "test"})

# A row with a text and none of these, as nearly all rows of a corpus are, says nothing more.
_MORE_KEYS = frozenset({"prompt", "tokens", "group", *WEIGHT_KEYS, *REWARD_KEYS})

_DECODER = json.JSONDecoder()

LONGEST_ORIGIN = 200
"""Characters of a source's or license's name that are kept."""

LARGEST_WEIGHT = 65504.0
"""The largest number of float16, in which weights are stored."""

LARGEST_REWARD = 3.0e38
"""Just below the largest number of float32, in which rewards are stored."""


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        UnusableError: the line is not UTF-8, not JSON, or not an object.
    """
    if b"\0" in line:
        raise UnusableError("NUL byte")
    try:
        value = _parse(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnusableError("not valid UTF-8", f"byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableError("not JSON", str(error)) from error
    if not isinstance(value, dict):
        raise UnusableError("not a JSON object", type(value).__name__)
    return value


def _parse(text: str) -> Any:
    """What ``json.loads`` gives, without what it does beside: half of its time for short lines."""
    try:
        value, end = _DECODER.raw_decode(text)
    except ValueError:
        return json.loads(text)  # white space before it; or an error, which is told in full
    rest = text[end:]
    return value if rest == "\n" or not rest.strip(" \t\n\r") else json.loads(text)


def parse_row(row: dict[str, Any], name: str) -> Document | TokenDocument:
    """A document from ``{"text"}``, ``{"prompt", "completion"}`` or ``{"tokens"}``.

    ``response`` is another name for ``completion``. ``loss_weights`` (or ``loss_weight``,
    ``loss_scale``) is a number for the whole document, or spans ``[[start, end, weight], ...]``
    over its text (prompt and completion joined), or a list of one number per entry of ``tokens``.
    ``reward`` is a number for the whole document, ``is_correct`` another way to give 1 or 0, and
    ``group`` names what it competes within. ``source`` and ``license``, where they are texts, are
    counted when the data are prepared.

    Raises:
        UnusableError: a key is missing, or its value is of the wrong type or out of range.

    Example:
        >>> parse_row({"prompt": "1+1=", "completion": "2", "loss_weights": 0.5}, "sums.jsonl:1")
        ... # doctest: +NORMALIZE_WHITESPACE
        Document(name='sums.jsonl:1', segments=(Segment(text='1+1=', wanted=False),
                 Segment(text='2', wanted=True)), weight=0.5, spans=(), reward=None, group=None,
                 origin=Origin(source=None, license=None))
    """
    origin = _given_origin(row)
    if "text" in row and row.keys().isdisjoint(_MORE_KEYS):
        return Document(name, (Segment(unix_newlines(text_of(row, "text"))),), origin=origin)
    weights, reward, group = _given_weights(row), _given_reward(row), _given_group(row)
    if "tokens" in row:
        ids, weights_of_ids = _tokens(row["tokens"], weights)
        return TokenDocument(name, ids, weights_of_ids, reward, group, origin)
    completion = next((key for key in COMPLETION_KEYS if key in row), None)
    if "prompt" in row and completion is not None:
        segments = [
            Segment(text_of(row, "prompt", may_be_empty=True), wanted=False),
            Segment(text_of(row, completion)),
        ]
    elif "text" in row:
        segments = [Segment(text_of(row, "text"))]
    else:
        found = ", ".join(sorted(row)[:8]) or "nothing"
        raise UnusableError(
            "no text", f"keys are {found}; text, or prompt and completion, or tokens is needed"
        )
    weight, spans = _text_weights(weights, "".join(segment.text for segment in segments))
    plain = [Segment(unix_newlines(segment.text), segment.wanted) for segment in segments]
    kept = tuple(segment for segment in plain if segment.text)
    return Document(name, kept, weight, spans, reward, group, origin)


def parse_mbpp_row(row: dict[str, Any], name: str) -> Document:
    '''A problem of MBPP: its text and tests as a docstring to be read, its code to be learned.

    Raises:
        UnusableError: a key is missing or its value is of the wrong type.

    Source:
        Austin et al. 2021 (arXiv:2108.07732); the prompt is that of InCoder's and bigcode's
        evaluations.

    Example:
        >>> row = {"task_id": 1, "text": "Add.", "code": "x", "test_list": ["assert a", "assert b"]}
        >>> print(parse_mbpp_row(row, "").segments[0].text, end="")
        """
        Add.
        assert a
        assert b
        """
    '''
    mbpp_task_id(row)
    tests = row.get("test_list")
    if not isinstance(tests, list):
        raise UnusableError("test_list is not a list of strings")
    lines = [text_of(row, "text"), *(_checked_text(test, "test_list") for test in tests)]
    prompt = unix_newlines('"""\n' + "\n".join(lines) + '\n"""\n')
    code = unix_newlines(text_of(row, "code"))
    weights = _given_weights(row)
    weight = None if weights is None else _weight(weights)
    return Document(name, (Segment(prompt, wanted=False), Segment(code)), weight)


def mbpp_task_id(row: dict[str, Any]) -> int:
    """The problem's number, by which MBPP is split."""
    task_id = row.get("task_id")
    if not isinstance(task_id, int) or isinstance(task_id, bool):
        raise UnusableError("task_id is not an integer", shown(task_id))
    return task_id


def parse_humaneval_row(row: dict[str, Any], name: str) -> Document:
    """A problem of HumanEval: the beginning of a function to be read, its body to be learned.

    Raises:
        UnusableError: a key is missing or its value is of the wrong type.

    Source:
        Chen et al. 2021 (arXiv:2107.03374).

    Example:
        >>> row = {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": " pass"}
        >>> [segment.text for segment in parse_humaneval_row(row, "").segments]
        ['def f():', ' pass']
    """
    humaneval_task_id(row)
    prompt = unix_newlines(text_of(row, "prompt"))
    solution = unix_newlines(text_of(row, "canonical_solution"))
    return Document(name, (Segment(prompt, wanted=False), Segment(solution)))


def humaneval_task_id(row: dict[str, Any]) -> str:
    """The problem's name, such as ``HumanEval/7``."""
    return text_of(row, "task_id")


def unix_newlines(text: str) -> str:
    r"""Every line ends in ``\n``, whatever wrote the file."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def check_text(text: str, key: str) -> str:
    """The text, if it can be tokenized and stored.

    Raises:
        UnusableError: it holds NUL, or half of a surrogate pair, which is no character.
    """
    if "\0" in text:
        raise UnusableError("NUL byte", f"in {key}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableError("lone surrogate", f"in {key}, character {error.start}") from error
    return text


def text_of(row: dict[str, Any], key: str, may_be_empty: bool = False) -> str:
    """The text of a key.

    Raises:
        UnusableError: it is missing, empty, or cannot be tokenized and stored.
    """
    text = _checked_text(row.get(key), key)
    if not text and not may_be_empty:
        raise UnusableError(f"{key} is empty")
    return text


def _checked_text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise UnusableError(f"{key} is not a string", shown(value))
    return check_text(value, key)


def _given_weights(row: dict[str, Any]) -> object:
    given = [key for key in WEIGHT_KEYS if row.get(key) is not None]
    if len(given) > 1:
        raise UnusableError("weights given twice", " and ".join(given))
    return row[given[0]] if given else None


def _given_reward(row: dict[str, Any]) -> float | None:
    given = [key for key in REWARD_KEYS if row.get(key) is not None]
    if len(given) > 1:
        raise UnusableError("rewards given twice", " and ".join(given))
    if not given:
        return None
    key, value = given[0], row[given[0]]
    if key == "is_correct":
        if not isinstance(value, bool):
            raise UnusableError("is_correct is not true or false", shown(value))
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableError("reward is not a number", shown(value))
    # rewards are stored as float32; an int may be too large even for a float
    if not -LARGEST_REWARD <= value <= LARGEST_REWARD or not math.isfinite(value):
        raise UnusableError("reward is not finite", shown(value))
    return float(value)


def _given_group(row: dict[str, Any]) -> str | None:
    group = row.get("group")
    if group is not None and not isinstance(group, str):
        raise UnusableError("group is not a string", shown(group))
    return group


def _given_origin(row: dict[str, Any]) -> Origin:
    """Many data sets use these keys for something else, which is nothing to us."""
    source, license = row.get("source"), row.get("license")
    source = source[:LONGEST_ORIGIN] if isinstance(source, str) and source else None
    license = license[:LONGEST_ORIGIN] if isinstance(license, str) and license else None
    return NO_ORIGIN if source is None and license is None else Origin(source, license)


def _text_weights(weights: object, text: str) -> tuple[float | None, tuple[Span, ...]]:
    if weights is None:
        return None, ()
    if not isinstance(weights, list):
        return _weight(weights), ()
    return 1.0, tuple(_span(span, text) for span in weights)


def _span(span: object, text: str) -> Span:
    if not (isinstance(span, list) and len(span) == 3 and all(map(_is_integer, span[:2]))):
        raise UnusableError(
            "loss_weights is not a number or spans [[start, end, weight], ...]", shown(span)
        )
    start, end, weight = span
    if not 0 <= start < end <= len(text):
        raise UnusableError(
            "loss_weights span outside the text", f"{start} to {end} of {len(text)} characters"
        )
    # spans count the characters of the file; the document has lost the \r of each \r\n
    before, inside = text.count("\r\n", 0, start), text.count("\r\n", 0, end)
    return start - before, end - inside, _weight(weight)


def _tokens(ids: object, weights: object) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """Token ids, and a weight for each or None."""
    if not (isinstance(ids, list) and ids and all(_is_integer(token) for token in ids)):
        raise UnusableError("tokens is not a list of integers", shown(ids))
    if isinstance(weights, list):
        if len(weights) != len(ids):
            raise UnusableError(
                "loss_weights and tokens differ in length", f"{len(weights)} and {len(ids)}"
            )
        return tuple(ids), tuple(_weight(weight) for weight in weights)
    return tuple(ids), None if weights is None else (_weight(weights),) * len(ids)


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableError("a weight is not a number", shown(value))
    if not 0 <= value <= LARGEST_WEIGHT:  # nor NaN
        raise UnusableError("a weight is not from 0 to 65504", shown(value))
    return float(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value as it looks in Python, short however long it is."""
    return reprlib.repr(value)
