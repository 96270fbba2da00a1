"""What training promises with either library."""

from typing import Any

import pytest

from wmtp.data import tokenizer_training
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.errors import DataError

KOREAN = [
    f"대한민국의 수도는 서울이고 {n}번째 문장입니다. 영화가 정말 재미있었어요 ㅋㅋㅋㅋ"
    for n in range(40)
]
LOSSLESS = [
    "ㅋㅋㅋ ㅠㅠ ㅏ ㄱ",  # lone jamo
    "나랏말ᄊᆞ미 듕귁에 달아 ᄒᆞᆫ글",  # old Hangul
    "각 각",  # decomposed and composed
    "\U0001f468‍\U0001f469‍\U0001f467 ❤️ \U0001f1f0\U0001f1f7",
    "漢字와 한글",
    "<s> </s> <|endoftext|> [EOS] <unk>",
    "  \t\r\n\n\u3000\u00a0 ",
]


@pytest.fixture(scope="module", params=["rustbpe", "tokenizers"])
def trained(request: pytest.FixtureRequest) -> TextTokenizer:
    return train_tokenizer(KOREAN, 400, trainer=request.param)


@pytest.mark.parametrize("text", LOSSLESS)
def test_what_tokenizers_often_lose_comes_back(trained: TextTokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert not trained.special_ids & set(ids)


def test_an_eojeol_with_its_space_becomes_one_token(trained: TextTokenizer) -> None:
    assert [trained.token_text(i) for i in trained.encode("의 영화가 정말")][-2:] == [
        " 영화가",
        " 정말",
    ]


@pytest.mark.parametrize("trainer", ["rustbpe", "tokenizers"])
def test_two_trainings_give_one_tokenizer(trainer: Any) -> None:
    one, other = (train_tokenizer(iter(KOREAN), 380, trainer=trainer) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert (
        train_tokenizer([text[9:] for text in KOREAN], 380, trainer=trainer).fingerprint
        != one.fingerprint
    )


def test_both_libraries_learn_the_same_words_but_for_ties() -> None:
    texts = ["abab\nabab\nabab\nabcabc"]
    found = {
        trainer: {t.token_text(i) for i in range(257, t.vocab_size)}
        for trainer in ("rustbpe", "tokenizers")
        for t in [train_tokenizer(texts, 259, trainer=trainer)]  # type: ignore[arg-type]
    }
    assert found["rustbpe"] == found["tokenizers"] == {"ab", "abab"}


@pytest.mark.parametrize(("digits", "pieces"), [(1, list("20261")), (2, ["20", "26", "1"])])
def test_digits_in_groups(digits: Any, pieces: list[str]) -> None:
    tokenizer = train_tokenizer(["20261 20261 20 26 "] * 9, 300, digits=digits)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("20261")] == pieces


def test_composing_is_a_choice() -> None:
    decomposed = "한"
    kept = train_tokenizer(KOREAN, 300)
    composing = train_tokenizer(KOREAN, 300, compose=True)
    assert kept.decode(kept.encode(decomposed)) == decomposed
    assert composing.decode(composing.encode(decomposed)) == "한"


def test_long_runs_are_learned_from_in_bounded_time() -> None:
    for text in (" " * 9_000 + "x", "\n" * 3_000 + " " * 3_000, "a" * 5_000):
        assert train_tokenizer([text], 270, trainer="rustbpe").vocab_size > 257


def test_options_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="digits is 4. Use 1, 2 or 3"):
        train_tokenizer(["a"], 300, digits=4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1048576 is the most"):
        train_tokenizer(["a"], 1 << 21)
    with pytest.raises(DataError, match="trainer is 'spm'. Use auto, rustbpe, tokenizers"):
        train_tokenizer(["a"], 300, trainer="spm")  # type: ignore[arg-type]
    monkeypatch.setattr(tokenizer_training, "MOST_BYTES_OF_RUSTBPE", 3)
    with pytest.raises(DataError, match="Set --sample-bytes"):
        train_tokenizer(["abcd"], 300, trainer="rustbpe")
    monkeypatch.setattr(tokenizer_training, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'wmtp\[korean\]'"):
        train_tokenizer(["a"], 300, trainer="rustbpe")
    assert tokenizer_training.choose_trainer("auto") == "tokenizers"
