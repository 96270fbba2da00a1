import json
from pathlib import Path

import pytest

from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_description import compare, describe_tokenizer, open_described
from wmtp.errors import DataError

TEXTS = [("a", "한국어 문장"), ("a", "abc"), ("b", "the fox")]


@pytest.fixture
def folder(tokenizer: TextTokenizer, tmp_path: Path) -> str:
    tokenizer.save(tmp_path / "tok")
    return str(tmp_path / "tok")


def test_description_counts_what_was_read(tokenizer: TextTokenizer, folder: str) -> None:
    found = describe_tokenizer(open_described(folder), TEXTS, longest=2, name="mine")
    tokens = {name: [len(tokenizer.encode(t)) for n, t in TEXTS if n == name] for name in "ab"}
    a, b, total = found.sources["a"], found.sources["b"], found.total
    assert (a.texts, a.lossless, a.text_bytes, a.characters, a.eojeol) == (2, 2, 19, 9, 3)
    assert (a.tokens, b.tokens) == (sum(tokens["a"]), sum(tokens["b"]))
    assert total.bytes_per_token == 26 / (a.tokens + b.tokens)
    assert b.tokens_per_eojeol == b.tokens / 2
    assert len(found.longest_tokens) == 2
    assert sum(found.scripts.values()) == found.vocab_size
    assert found.scripts["hangul"] >= 1
    lines = "\n".join(found.lines())
    assert "texts: 3, of which 3 come back as they were" in lines
    assert "fast encoder: equal to tokenizer.json's" in lines
    assert json.loads(json.dumps(found.as_json()))["sources"]["b"]["texts"] == 1


def test_a_text_that_does_not_come_back_is_told(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    source = tmp_path / "text"
    source.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(source), model_prefix=str(tmp_path / "spm"), vocab_size=60,
        minloglevel=2, model_type="bpe", hard_vocab_limit=False,
    )  # fmt: skip
    found = describe_tokenizer(open_described(str(tmp_path / "spm.model")), [*TEXTS, ("b", "한")])
    assert found.total.lossless == 2  # its default settings know no Hangul
    assert found.first_lossy == "한국어 문장"
    assert "first text that did not come back: '한국어 문장'" in "\n".join(found.lines())


def test_several_stand_beside_each_other(folder: str) -> None:
    one = describe_tokenizer(open_described(folder), TEXTS, name="x")
    lines = compare([one, one])
    assert lines[0] == "bytes per token, of (1) x, (2) x"
    assert lines[1].split()[0] == "all"
    assert lines[-1].split() == ["lossy", "0", "0"]
    assert [line.split()[0] for line in lines[2:4]] == ["a", "b"]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    path = tmp_path / "x.model"
    with pytest.raises(DataError, match="cannot be read"):
        open_described(str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no SentencePiece model"):
        open_described(str(path))
