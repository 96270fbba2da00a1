import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from wmtp.data import tokenizer as tokenizer_module
from wmtp.data.tokenizer import TextTokenizer, stream_text
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.errors import DataError

ODD_TEXTS = [
    "plain",
    " leading and trailing \n\n\t ",
    "def f(x):\r\n\n\n    return x  # 1234567",
    "\U0001f468‍\U0001f469‍\U0001f467 \U0001f1f0\U0001f1f7",  # joined emoji, a flag
    "ᄒ ᅡ 각",  # lone jamo, decomposed syllable
    "ᄫ ㆍ 나랏말싸미",  # old Hangul
    "漢字 한국어 e\u0301 é",
    "a\0b\x7f\ufeff\ufffd",
    "<|endoftext|> <s></s> [EOS]",
    "\U0010ffff",
    "",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_text_comes_back_as_it_was(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_bytes_of_ids_add_up_to_the_text(tokenizer: TextTokenizer, text: str) -> None:
    lengths = tokenizer.bytes_of_ids
    assert lengths is not None
    assert len(lengths) == tokenizer.vocab_size
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
    assert lengths[tokenizer.eos_id] == 0


def test_bytes_of_added_words_are_theirs_and_of_whole_words_unknown(tmp_path: Path) -> None:
    train_tokenizer(["a b"], 280).save(tmp_path)
    model = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model.add_tokens(["한 글"])  # no byte-level spelling
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path)
    lengths = tokenizer.bytes_of_ids
    assert lengths is not None
    assert lengths[tokenizer.encode("한 글")].tolist() == [7]

    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
    words.add_special_tokens(["</s>"])
    words.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer.load(tmp_path).bytes_of_ids is None


def test_literal_special_token_is_only_text(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_special_token_found_by_the_vocabulary_itself_is_cut_apart(tmp_path: Path) -> None:
    # a vocabulary of whole words matches "</s>" in the text without knowing it for special
    words = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "<": 4, "/s>": 5}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(["</s>", "<unk>"])
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.eos_id == 1
    assert tokenizer.encode("a </s> b zzz") == [2, 4, 5, 3, 0]


def test_two_trainings_give_one_tokenizer() -> None:
    texts = [f"word{n} of {n % 7} words" for n in range(200)]
    first, second = (train_tokenizer(iter(texts), 400) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == second.vocab_size <= 400


def test_digits_stand_alone_as_the_engines_cut_them() -> None:
    trained = train_tokenizer(["20262026 20262026 20262026 "] * 9, 300)
    pieces = [trained.token_text(i) for i in trained.encode("20262026")]
    assert pieces == list("20262026")


def test_training_needs_text_and_room_for_every_byte() -> None:
    with pytest.raises(DataError, match="vocab_size is 256, but .* at least 257"):
        train_tokenizer(["a"], 256)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], 300)


@pytest.mark.parametrize("model_type", [None, "llama", "qwen3"])
def test_transformers_gives_the_same_ids(
    tokenizer: TextTokenizer, tmp_path: Path, model_type: str | None
) -> None:
    tokenizer.save(tmp_path)
    if model_type:  # as in a checkpoint, where transformers might prefer its own class
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ODD_TEXTS:
        ids = theirs(text, split_special_tokens=True).input_ids
        assert ids == [*tokenizer.bos_ids, *tokenizer.encode(text)]
        assert theirs.decode(ids[1:]) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.eos_id, tokenizer.eos_id)


def test_saved_and_loaded_is_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = TextTokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.eos_id, loaded.bos_ids) == (0, (0,))
        assert loaded.vocab_size == tokenizer.vocab_size


def test_truncation_and_padding_of_a_file_are_not_applied(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    model = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model.enable_truncation(3)
    model.enable_padding(length=50)
    model.save(str(tmp_path / "tokenizer.json"))
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.encode("some longer text") == tokenizer.encode("some longer text")
    assert loaded.fingerprint == tokenizer.fingerprint


def test_other_merges_are_another_fingerprint(tokenizer: TextTokenizer) -> None:
    assert train_tokenizer(["something else " * 9], 300).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "two"}),
        ("tokenizer_config.json", {"eos_token": {"content": "two"}}),
        ("generation_config.json", {"eos_token_id": [2, 0]}),
        ("config.json", {"eos_token_id": 2}),
    ],
)
def test_end_of_text_is_found_in_the_files_beside(
    tmp_path: Path, name: str, content: dict[str, object]
) -> None:
    words = {"<unk>": 0, "one": 1, "two": 2}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="nothing says which token ends a document"):
        TextTokenizer.load(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    assert TextTokenizer.load(tmp_path).eos_id == 2


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        TextTokenizer.load(tmp_path / "missing")
    file = tmp_path / "tokenizer.json"
    for content, message in ((b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"{}", "cannot be")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            TextTokenizer.load(file)


def test_long_text_goes_through_in_pieces(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"def f{n}(a, b):\n    return a + {n}\n\n\n" for n in range(40))
    ids, ends = tokenizer.encode_with_ends(text)
    monkeypatch.setattr(tokenizer_module, "LONGEST_PIECE_CHARS", 100)
    cut_ids, cut_ends = tokenizer.encode_with_ends(text)
    assert cut_ids.tolist() == ids.tolist() == tokenizer.encode(text)
    assert cut_ends.tolist() == ends.tolist()
    unbroken = "한국어" * 200  # nowhere a clean cut: lossless all the same
    assert tokenizer.decode(tokenizer.encode(unbroken)) == unbroken


def test_ends_count_characters(tokenizer: TextTokenizer) -> None:
    ids, ends = tokenizer.encode_with_ends("한 quick \U0001f600")
    assert len(ids) == len(ends)
    assert ends[-1] == 9
    assert np.all(np.diff(ends) >= 0)


def test_batch_equals_one_by_one(tokenizer: TextTokenizer) -> None:
    batch = tokenizer.encode_batch(ODD_TEXTS)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in ODD_TEXTS]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_streamed_text_equals_text(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = list(stream_text(tokenizer, iter(ids)))
    assert "".join(piece for piece, _ in pieces) == text
    assert sum(count for _, count in pieces) == len(ids)


def test_half_a_character_is_shown_at_the_end(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a\U0001f600")[:-1]
    assert "".join(piece for piece, _ in stream_text(tokenizer, ids)) == "a\ufffd"
