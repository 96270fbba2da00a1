import json

import pytest

from wmtp.data.documents import Document, Segment, TokenDocument, UnusableError
from wmtp.data.json_lines import parse_mbpp_row, parse_object, parse_row


def test_text_is_one_wanted_segment() -> None:
    assert parse_row({"text": "abc"}, "f:1") == Document("f:1", (Segment("abc"),))


@pytest.mark.parametrize("key", ["completion", "response"])
def test_prompt_is_read_and_completion_is_learned(key: str) -> None:
    document = parse_row({"prompt": "1+1=", key: "2"}, "f:1")
    assert document == Document("f:1", (Segment("1+1=", wanted=False), Segment("2")))


def test_empty_prompt_leaves_the_completion_alone() -> None:
    assert parse_row({"prompt": "", "completion": "x"}, "f") == Document("f", (Segment("x"),))


@pytest.mark.parametrize("key", ["loss_weights", "loss_weight", "loss_scale"])
def test_weight_of_a_whole_document(key: str) -> None:
    document = parse_row({"text": "abc", key: 2}, "f")
    assert isinstance(document, Document)
    assert document.weight == 2.0
    assert document.spans == ()


def test_spans_follow_the_text_when_carriage_returns_go() -> None:
    document = parse_row({"text": "a\r\nb\r\r\nd", "loss_weights": [[3, 5, 0.5]]}, "f")
    assert isinstance(document, Document)
    assert document.segments[0].text == "a\nb\n\nd"
    assert document.spans == ((2, 4, 0.5),)
    assert document.segments[0].text[2:4] == "b\n"


def test_tokens_with_a_weight_each() -> None:
    document = parse_row({"tokens": [5, 6], "loss_weights": [0, 2.5]}, "f")
    assert document == TokenDocument("f", (5, 6), (0.0, 2.5))
    assert parse_row({"tokens": [5, 6], "loss_weights": 3}, "f") == TokenDocument(
        "f", (5, 6), (3.0, 3.0)
    )


def test_reward_and_group_of_a_document() -> None:
    document = parse_row({"prompt": "a", "response": "b", "reward": -2, "group": "p1"}, "f")
    assert (document.reward, document.group) == (-2.0, "p1")
    tokens = parse_row({"tokens": [1], "is_correct": True, "reward": None}, "f")
    assert (tokens.reward, tokens.group) == (1.0, None)
    wrong = parse_row({"text": "a", "is_correct": False}, "f")
    assert (wrong.reward, wrong.group) == (0.0, None)


def test_null_weight_is_no_weight() -> None:
    assert parse_row({"text": "a", "loss_weights": None}, "f") == Document("f", (Segment("a"),))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"txt": "a"}, "no text"),
        ({"prompt": "a"}, "no text"),
        ({}, "no text"),
        ({"text": ""}, "text is empty"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"text": 3}, "text is not a string"),
        ({"text": None}, "text is not a string"),
        ({"text": "a\0b"}, "NUL byte"),
        ({"text": "a\ud800b"}, "lone surrogate"),
        ({"text": "a", "loss_weights": "2"}, "a weight is not a number"),
        ({"text": "a", "loss_weights": True}, "a weight is not a number"),
        ({"text": "a", "loss_weights": -1}, "a weight is not from 0 to 65504"),
        ({"text": "a", "loss_weights": float("nan")}, "a weight is not from 0 to 65504"),
        ({"text": "a", "loss_weights": 10**400}, "a weight is not from 0 to 65504"),
        ({"text": "a", "loss_weights": [[0, 2, 1]]}, "loss_weights span outside the text"),
        ({"text": "ab", "loss_weights": [[1, 1, 1]]}, "loss_weights span outside the text"),
        (
            {"text": "ab", "loss_weights": [1, 2]},
            "loss_weights is not a number or spans [[start, end, weight], ...]",
        ),
        ({"text": "a", "loss_weights": 1, "loss_scale": 1}, "weights given twice"),
        ({"tokens": []}, "tokens is not a list of integers"),
        ({"tokens": [1, True]}, "tokens is not a list of integers"),
        ({"tokens": [1, 2], "loss_weights": [1]}, "loss_weights and tokens differ in length"),
        ({"text": "a", "reward": 1, "is_correct": True}, "rewards given twice"),
        ({"text": "a", "reward": "1"}, "reward is not a number"),
        ({"text": "a", "reward": True}, "reward is not a number"),
        ({"text": "a", "reward": float("nan")}, "reward is not finite"),
        ({"text": "a", "reward": float("inf")}, "reward is not finite"),
        ({"text": "a", "reward": 10**400}, "reward is not finite"),
        ({"text": "a", "reward": 1e39}, "reward is not finite"),
        ({"tokens": [1], "is_correct": 1}, "is_correct is not true or false"),
        ({"text": "a", "group": 3}, "group is not a string"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, object], reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        parse_row(row, "f")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"text": "\0"}', "NUL byte"),
    ],
)
def test_a_line_that_is_no_object_says_why(line: bytes, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        parse_object(line)
    assert caught.value.reason == reason


def test_mbpp_prompt_and_code() -> None:
    row = {
        "task_id": 601,
        "text": "Add two numbers.",
        "code": "def add(a, b):\r\n\treturn a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
        "test_setup_code": "",
    }
    document = parse_mbpp_row(json.loads(json.dumps(row)), "f:1")
    assert document.segments == (
        Segment(
            '"""\nAdd two numbers.\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n"""\n',
            wanted=False,
        ),
        Segment("def add(a, b):\n\treturn a + b"),
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_id": "7"}, "task_id is not an integer"),
        ({"test_list": "assert x"}, "test_list is not a list of strings"),
        ({"test_list": [1]}, "test_list is not a string"),
        ({"code": ""}, "code is empty"),
    ],
)
def test_a_broken_mbpp_row_says_why(change: dict[str, object], reason: str) -> None:
    row = {"task_id": 7, "text": "a", "code": "b", "test_list": ["c"], **change}
    with pytest.raises(UnusableError) as caught:
        parse_mbpp_row(row, "f")
    assert caught.value.reason == reason
