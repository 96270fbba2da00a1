"""What a model writes: cut at stop sequences, the same whoever else is asked, and never twice."""

from pathlib import Path

import pytest

from tests.model.toys import toy_model
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.errors import DataError
from wmtp.evaluation.continuations import (
    Prompt,
    Sample,
    SampleFile,
    Wanted,
    cut_at,
    write_samples,
)
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.generate import generate
from wmtp.model.multi_token import MultiTokenModel

TEXT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n" * 3
PROMPTS = [Prompt("one", "def add"), Prompt("two", "    return"), Prompt("three", "b)")]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(iter([TEXT]), 280)


@pytest.fixture(scope="module")
def model(tokenizer: TextTokenizer) -> MultiTokenModel:
    return toy_model(4, vocab_size=tokenizer.vocab_size, max_seq_length=128).eval()


def written(
    model: MultiTokenModel, tokenizer: TextTokenizer, prompts: list[Prompt], wanted: Wanted
) -> list[Sample]:
    return list(write_samples(model, tokenizer, DraftVocabulary(model), prompts, wanted))


@pytest.mark.parametrize("speculative", [0, 3])
def test_greedy_texts_are_those_of_generate(
    model: MultiTokenModel, tokenizer: TextTokenizer, speculative: int
) -> None:
    wanted = Wanted(max_new_tokens=30, speculative=speculative, batch_size=2)
    found = written(model, tokenizer, PROMPTS, wanted)
    for prompt, sample in zip(PROMPTS, found, strict=True):
        ids = [*tokenizer.bos_ids, *tokenizer.encode(prompt.text)]
        alone = list(generate(model, ids, max_new_tokens=30, stop_ids=(tokenizer.eos_id,)))
        assert (sample.task_id, sample.text) == (prompt.task_id, tokenizer.decode(alone))
        assert sample.reason == ("length" if len(alone) == 30 else "end of text")


def test_a_text_ends_where_the_first_stop_sequence_begins(
    model: MultiTokenModel, tokenizer: TextTokenizer
) -> None:
    """Wherever it is cut into tokens; and those beside it in the batch go on."""
    free = written(model, tokenizer, PROMPTS, Wanted(max_new_tokens=40))
    stop = free[0].text[5:8]
    assert stop
    found = written(model, tokenizer, PROMPTS, Wanted(max_new_tokens=40, stop=(stop, "never")))
    for before, after in zip(free, found, strict=True):
        assert after.text == before.text[: cut_at(before.text, [stop])]
    assert found[0].reason == "stop"
    assert found[0].tokens < 40


def test_samples_of_a_prompt_do_not_depend_on_the_others(
    model: MultiTokenModel, tokenizer: TextTokenizer
) -> None:
    """So that an interrupted evaluation ends as one that was not."""
    wanted = Wanted(samples=3, max_new_tokens=20, temperature=1.0, speculative=2, batch_size=2)
    together = written(model, tokenizer, PROMPTS, wanted)
    assert len({sample.text for sample in together}) > 3
    assert written(model, tokenizer, PROMPTS[1:], wanted) == together[3:]
    other = Wanted(**{**vars(wanted), "seed": 1})
    assert written(model, tokenizer, PROMPTS, other) != together
    with pytest.raises(ValueError, match="several samples of greedy decoding are one"):
        Wanted(samples=2)


def test_what_is_in_the_file_is_not_written_again(tmp_path: Path) -> None:
    """A torn line is cut off; a prompt whose samples are not all there is written anew, once."""
    path = tmp_path / "texts.jsonl"
    file = SampleFile(path, {"model": "a"})
    for index in range(2):
        file.add(Sample("one", index, "x\u2028y", 3, "stop"))
    file.add(Sample("two", 0, "z", 1, "length"))
    file.close()
    with path.open("ab") as torn:
        torn.write(b'{"task_id": "two", "in')
    again = SampleFile(path, {"model": "a"})
    assert [sample.text for sample in again.samples] == ["x\u2028y", "x\u2028y", "z"]
    missing = again.missing(PROMPTS, 2)
    assert [prompt.task_id for prompt in missing] == ["two", "three"]
    again.add(Sample("two", 0, "z", 1, "length"))
    again.add(Sample("two", 1, "z", 1, "length"))
    again.close()
    assert len(path.read_bytes().splitlines()) == 1 + 4
    with pytest.raises(DataError, match="samples of another model or of other settings"):
        SampleFile(path, {"model": "b"})


def test_a_prompt_that_leaves_no_room_has_no_text_and_does_not_stop_the_others(
    model: MultiTokenModel, tokenizer: TextTokenizer
) -> None:
    wanted = Wanted(max_new_tokens=9)
    some = [PROMPTS[0], Prompt("long", TEXT * 9), PROMPTS[1]]
    first, long, second = written(model, tokenizer, some, wanted)
    assert (long.text, long.tokens, long.reason) == ("", 0, "long prompt")
    assert [first, second] == written(model, tokenizer, PROMPTS[:2], wanted)
