"""The fast encoder gives the ids of ``tokenizer.json``, or is not used."""

import json
import lzma
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model_directories import words, write_tokenizer

from wmtp.data import fast_encoding
from wmtp.data.fast_encoding import (
    GPT2_WORDS,
    FastEncoder,
    NoFastEncoderError,
    _young_characters,
    fast_encoder,
)
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.verify.prompts import strings_to_tokenize

HANGUL = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)
JAMO = st.characters(min_codepoint=0x1100, max_codepoint=0x11FF)
ODD = st.sampled_from(
    ["ㅋㅋㅋ", " ", "  ", "\n", "\r\n", "\t", "'S", "'ſ", "<|endoftext|>", "1", "²", "漢",
     "❤\ufe0f", "\u3000", "\u0301", "\u200d", "\U0001f600", "\x85", "K", "the", "def f(x):",
     "...", "\u0378"]
)  # fmt: skip
TEXTS = st.lists(st.one_of(HANGUL, JAMO, ODD, st.text(max_size=8)), max_size=30).map("".join)


@pytest.fixture(scope="module")
def learned() -> TextTokenizer:
    """From strange texts, so that many merges are of parts of characters."""
    texts = [*strings_to_tokenize(400, seed=3), "한국어 문장을 배웁니다 ㅋㅋㅋㅋㅋ the def" * 9]
    return train_tokenizer(texts, 1500)


@pytest.fixture(scope="module")
def encoder(learned: TextTokenizer) -> FastEncoder:
    return fast_encoder(learned)


def assert_equal(encoder: FastEncoder, tokenizer: TextTokenizer, texts: list[str]) -> None:
    pairs = zip(encoder.encode_batch(texts), tokenizer.encode_batch(texts), strict=True)
    for text, (fast, own) in zip(texts, pairs, strict=True):
        assert fast.dtype == own.dtype
        assert fast.tolist() == own.tolist(), text


@settings(max_examples=60, deadline=None, database=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_generated_text_gets_the_same_ids_and_comes_back(
    learned: TextTokenizer, encoder: FastEncoder, texts: list[str]
) -> None:
    assert_equal(encoder, learned, texts)
    for text in texts:
        assert learned.decode(encoder.encode_batch([text])[0].tolist()) == text


def test_every_character_gets_the_same_ids(learned: TextTokenizer, encoder: FastEncoder) -> None:
    """Each between letters, so that it cuts a word or does not, as its Unicode class says."""
    every = [chr(c) for c in range(0x21, 0x30000, 3) if not 0xD800 <= c < 0xE000]
    assert_equal(
        encoder, learned, ["a".join(every[i : i + 4096]) for i in range(0, len(every), 4096)]
    )


def test_young_characters_are_those_that_python_does_not_know(encoder: FastEncoder) -> None:
    young = _young_characters()
    for code in range(0, sys.maxunicode + 1, 31):
        is_young = unicodedata.category(chr(code)) == "Cn"
        assert (young.search(chr(code)) is not None) == is_young
        assert encoder._must_be_slow(chr(code)) == is_young


@pytest.mark.parametrize("trainer", ["rustbpe", "tokenizers"])
@pytest.mark.parametrize("compose", [True, False])
def test_each_way_of_training_has_one(trainer: Any, compose: bool) -> None:
    texts = strings_to_tokenize(100, seed=4)
    tokenizer = train_tokenizer(texts, 600, trainer=trainer, compose=compose, digits=2)
    more = [unicodedata.normalize("NFD", text) for text in strings_to_tokenize(100, seed=5)]
    assert_equal(fast_encoder(tokenizer), tokenizer, more)


def test_long_texts_are_cut_where_the_tokenizer_cuts_them(
    learned: TextTokenizer, encoder: FastEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmtp.data.tokenizer.LONGEST_PIECE_CHARS", 64)
    assert_equal(encoder, learned, ["한국어 문장 " * 50, "가" * 300, " " * 300, "the cat " * 90])


def test_other_peoples_tokenizers_work_too(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, words(GPT2_WORDS))
    tokenizer = TextTokenizer.load(tmp_path)
    assert_equal(fast_encoder(tokenizer), tokenizer, strings_to_tokenize(100, seed=6))


def _lowercase(parts: dict[str, Any]) -> None:
    parts["normalizer"] = {"type": "Lowercase"}


def _two_steps(parts: dict[str, Any]) -> None:
    parts["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})


def _word_added(parts: dict[str, Any]) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parts["added_tokens"].append({"id": 1500, "content": "한국어", "special": False, **plain})


def _merge_twice(parts: dict[str, Any]) -> None:
    """Another way to a token that is made already: first and rest, where it was rest and last."""
    vocab, merges = parts["model"]["vocab"], parts["model"]["merges"]
    pairs = {tuple(pair) for pair in merges}
    tokens = (token for token in vocab if len(token) > 2 and token[1:] in vocab)
    merges.append(next([t[0], t[1:]] for t in tokens if (t[0], t[1:]) not in pairs))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_lowercase, "changes the text first"),
        (_two_steps, "more than one step"),
        (_word_added, "an added token that texts may hold"),
        (_merge_twice, "two of its merges make the same token"),
    ],
)
def test_what_tiktoken_cannot_do_is_said(
    change: Callable[[dict[str, Any]], None], why: str, learned: TextTokenizer, tmp_path: Path
) -> None:
    learned.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    parts = json.loads(file.read_text(encoding="utf-8"))
    change(parts)
    file.write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(NoFastEncoderError, match=why):
        fast_encoder(TextTokenizer.load(tmp_path))


def test_other_ids_are_noticed(learned: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of all tests above: words cut in another way are found out."""
    monkeypatch.setattr(fast_encoding, "_pattern", lambda parts: r"\p{L}+|\p{N}|[^\p{L}\p{N}]+")
    with pytest.raises(NoFastEncoderError, match="gives other ids for"):
        fast_encoder(learned)


def test_without_tiktoken_it_says_how_to_get_it(
    learned: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_encoding, "find_spec", lambda name: None)
    with pytest.raises(NoFastEncoderError, match=r"pip install 'wmtp\[korean\]'"):
        fast_encoder(learned)


def test_every_korean_file_gets_the_same_ids_and_comes_back(
    real_data: Path, learned: TextTokenizer, encoder: FastEncoder
) -> None:
    for path in sorted((real_data / "ko").glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for _, line in zip(range(300), file, strict=False)]
        texts = [text[:3000] for text in texts[:: 30 if path.stat().st_size > 10**6 else 5]]
        fast = encoder.encode_batch(texts)
        for text, ids, own in zip(texts, fast, learned.encode_batch(texts), strict=True):
            assert np.array_equal(ids, own), text
            assert learned.decode(ids.tolist()) == text
