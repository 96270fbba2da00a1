import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import pre_tokenizers

from tests.model.toys import toy_model
from tests.model_directories import END, VOCABULARY, words, write_tokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.errors import DataError
from wmtp.export.gguf import export_gguf
from wmtp.export.gguf_tokenizer import (
    CONTROL,
    GPT2_WORDS,
    LLAMA3_WORDS,
    NORMAL,
    QWEN2_WORDS,
    QWEN35_WORDS,
    UNUSED,
    USER_DEFINED,
    GgufTokenizer,
    gguf_tokenizer,
)
from wmtp.model.hf_config import read_config
from wmtp.model.hf_layout import save_model
from wmtp.model.stored_config import SpecialTokens

DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


def model_in(folder: Path) -> None:
    model = toy_model(1, vocab_size=VOCABULARY + 2)
    save_model(model, folder, special_tokens=SpecialTokens(None, (0, 7)))


def change(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(parts | changes), encoding="utf-8")


def read(folder: Path) -> GgufTokenizer:
    found = gguf_tokenizer(folder, read_config(folder))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTES, False, "gpt-2"),
        (words(GPT2_WORDS), False, "gpt-2"),
        (pre_tokenizers.Sequence([DIGITS, BYTES]), False, "smollm"),
        (words(LLAMA3_WORDS), True, "llama-bpe"),
        (words(LLAMA3_WORDS), False, "dbrx"),
        (words(QWEN2_WORDS), False, "qwen2"),
        (words(QWEN35_WORDS), False, "qwen35"),
    ],
)
def test_the_way_of_cutting_is_found_by_what_it_does(
    pre_tokenizer: Any, ignore_merges: bool, name: str, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, pre_tokenizer, ignore_merges=ignore_merges)
    model_in(tmp_path)
    assert read(tmp_path).pre == name


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pre_tokenizer": None}, "a step that llama.cpp does not have: null"),
        ({"normalizer": {"type": "Lowercase"}}, "changes the text first .normalizer Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "a step that llama.cpp does not have"),
    ],
)
def test_what_would_give_other_ids_is_refused_in_one_line(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    model_in(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(DataError, match=why) as refusal:
        read(tmp_path)
    assert "\n" not in str(refusal.value)


def test_words_that_llama_cpp_lacks_are_refused(tmp_path: Path) -> None:
    """No way of cutting of llama.cpp's has digits in groups of one or two."""
    write_tokenizer(tmp_path, words(QWEN35_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,2}|")))
    model_in(tmp_path)
    with pytest.raises(DataError, match="in a way that llama.cpp does not have") as refusal:
        read(tmp_path)
    assert "\n" not in str(refusal.value)


def test_merges_are_needed(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, size=257)
    model_in(tmp_path)
    with pytest.raises(DataError, match="has no merges"):
        read(tmp_path)


def test_a_larger_vocabulary_than_the_models_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, size=400)
    model_in(tmp_path)
    with pytest.raises(DataError, match=r"ids up to 399, but the model knows only 322"):
        read(tmp_path)


def test_kinds_special_ids_and_unused_ones(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    model_in(tmp_path)
    parts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {"id": VOCABULARY, "content": "<tool>", "special": False, **plain}
    change(tmp_path, added_tokens=[*parts["added_tokens"], added])
    found = read(tmp_path)
    assert len(found.tokens) == len(found.kinds) == VOCABULARY + 2
    assert found.tokens[0] == END
    assert found.kinds[0] == CONTROL
    assert found.kinds[1] == NORMAL
    assert found.kinds[-2:] == (USER_DEFINED, UNUSED)
    assert found.special == {"bos": 0, "eos": 0, "eot": 7}
    assert found.adds_bos
    change(tmp_path, added_tokens=[*parts["added_tokens"], added | {"lstrip": True}])
    with pytest.raises(DataError, match="the added token '<tool>' has lstrip"):
        read(tmp_path)


def test_composing_normalizers_are_told(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, with_front=False)
    model_in(tmp_path)
    change(tmp_path, normalizer={"type": "NFC"})
    found = read(tmp_path)
    assert not found.adds_bos
    assert "bos" not in found.special
    assert "composes characters first" in found.notes[0]


def test_chat_template_and_merges_are_in_the_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    model_in(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert fields["tokenizer.ggml.pre"].contents() == "qwen35"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    merges = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"][
        "merges"
    ]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in merges]


def test_our_own_tokenizers_have_a_name(tmp_path: Path) -> None:
    train_tokenizer(["ab ab ab " * 9], 270).save(tmp_path)
    model_in(tmp_path)
    assert read(tmp_path).pre == "qwen35"
