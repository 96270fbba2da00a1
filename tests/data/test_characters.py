"""Streamed text is whole characters, and all of the text."""

import pytest
import regex

from wmtp.data.characters import whole_characters
from wmtp.data.tokenizer import stream_text
from wmtp.data.tokenizer_training import train_tokenizer

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
TEXTS = [
    "한국어로 씁니다. ㅋㅋㅋ",
    f"가족 {FAMILY}, 국기 \U0001f1f0\U0001f1f7\U0001f1fa\U0001f1f8!",
    "손 \U0001f44d\U0001f3fd, 하트 \u2764\ufe0f\u200d\U0001f525 끝",
    "옛말 \u1112\u119e\u11ab글",  # conjoining jamo of one syllable
    "\U0001f600" * 5,
]


def characters(*pieces: str) -> list[str]:
    """What readers take for one each, in every piece by itself."""
    return [found for piece in pieces for found in regex.findall(r"\X", piece)]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_all_of_the_text(text: str) -> None:
    pieces = list(whole_characters(iter(text)))
    assert "".join(pieces) == text
    assert [c for piece in pieces for c in regex.findall(r"\X", piece)] == regex.findall(
        r"\X", text
    )


def test_code_points_alone_would_break_characters() -> None:
    """What the test above would find, were nothing held back."""
    assert characters(*TEXTS[1]) != characters(TEXTS[1])


def test_only_what_may_go_on_waits() -> None:
    assert list(whole_characters("한글 1")) == list("한글 1")
    assert list(whole_characters("a\U0001f600b")) == ["a", "\U0001f600b"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_a_character_that_are_tokens_of_their_own(text: str) -> None:
    """A tokenizer of bytes alone: three tokens for a syllable, eighteen for a family and more."""
    tokenizer = train_tokenizer(["abc"], 257)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    pieces = list(whole_characters(piece for piece, _ in stream_text(tokenizer, ids)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    cut = "".join(whole_characters(piece for piece, _ in stream_text(tokenizer, ids[:-1])))
    assert cut.count("\ufffd") == (0 if text[-1].isascii() else 1)
    assert cut.rstrip("\ufffd") == text[:-1]
