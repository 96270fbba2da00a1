"""Repetition controls are those of transformers, and drafts leave the text what it is."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from wmtp.model.decoding.repetition import without_repetition
from wmtp.model.generate import Sampling, generate_many

from .taught import prompts, taught_model
from .test_speculative import code, p_value

CONTROLS = [(1.3, 0), (0.8, 0), (1.0, 1), (1.0, 2), (1.0, 3), (1.2, 4)]


@pytest.mark.parametrize(("penalty", "ngram"), CONTROLS)
def test_logits_equal_those_of_transformers(penalty: float, ngram: int) -> None:
    generator = torch.Generator().manual_seed(3)
    texts = torch.randint(0, 12, (6, 40), generator=generator)
    logits = torch.randn(6, 50, generator=generator) * 3
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    if ngram:
        processors.append(NoRepeatNGramLogitsProcessor(ngram))
    expected = processors(texts, logits.clone())
    found = without_repetition(logits, texts.tolist(), penalty=penalty, ngram=ngram)
    assert torch.equal(found, expected)
    assert not torch.equal(found, logits)


def test_a_text_shorter_than_the_run_forbids_nothing() -> None:
    logits = torch.randn(1, 5)
    assert torch.equal(without_repetition(logits, [[1, 2]], ngram=3), logits)


def test_where_all_would_be_forbidden_nothing_is() -> None:
    logits = torch.randn(1, 3)
    assert torch.equal(without_repetition(logits, [[0, 1, 2]], ngram=1), logits)


@pytest.mark.parametrize("kind", ["sequential", "linear"])
@pytest.mark.parametrize(("penalty", "ngram"), [(3.0, 0), (1.0, 2), (1.5, 3)])
def test_greedy_text_with_drafts_is_that_without(kind: str, penalty: float, ngram: int) -> None:
    model, some = taught_model(kind), prompts(5, 1, 20)
    sampling = Sampling(repetition_penalty=penalty, no_repeat_ngram=ngram)
    plain, _ = generate_many(model, some, max_new_tokens=40, sampling=sampling)
    drafted, figures = generate_many(
        model, some, max_new_tokens=40, sampling=sampling, speculative=3
    )
    assert [text.ids for text in drafted] == [text.ids for text in plain]
    assert figures[0].acceptance[0] > 0
    free, _ = generate_many(model, some, max_new_tokens=40)
    assert [text.ids for text in free] != [text.ids for text in plain]
    for text in drafted if ngram else []:
        runs = [tuple(text.ids[i : i + ngram]) for i in range(len(text.ids) - ngram + 1)]
        of_prompt = max(0, text.prompt - ngram + 1)
        new = runs[of_prompt:]
        assert len(set(new)) == len(new)
        assert not set(new) & set(runs[:of_prompt])


def test_drawn_texts_follow_the_same_distribution() -> None:
    model = taught_model("sequential")
    (prompt,) = prompts(6)
    both = []
    for count, seed in ((0, 1), (2, 2)):
        sampling = Sampling(1.2, 0.95, seed, repetition_penalty=1.4, no_repeat_ngram=2)
        texts, _ = generate_many(
            model, [prompt] * 800, max_new_tokens=3, sampling=sampling, speculative=count
        )
        both.append(torch.tensor([text.ids[text.prompt :] for text in texts]))
    for places in ([0], [1], [2], [1, 2]):
        assert p_value(code(both[0][:, places]), code(both[1][:, places])) > 1e-5, places


@pytest.mark.parametrize("bad", [{"repetition_penalty": 0.0}, {"no_repeat_ngram": -1}])
def test_controls_out_of_bounds_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Sampling(**bad)  # type: ignore[arg-type]
