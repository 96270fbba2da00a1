"""Drafts are chosen from some tokens, texts from all."""

import copy
import json
from pathlib import Path

import pytest
import torch

from tests.model.toys import toy_model
from wmtp.errors import CheckpointError
from wmtp.model.decoding.draft_vocabulary import (
    DRAFT_VOCABULARY_NAME,
    DraftVocabulary,
    load_draft_vocabulary,
    pays_to_trim,
    write_draft_vocabulary,
)
from wmtp.model.generate import Sampling, generate, generate_many
from wmtp.model.packing import pack_for_decoding

from .taught import VOCABULARY, prompts, taught_model
from .test_speculative import code, p_value

SOME = tuple(range(1, VOCABULARY, 2))


def test_logits_and_probabilities_of_some_tokens() -> None:
    model = toy_model(2)
    hidden_BD = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    vocabulary = DraftVocabulary(model, [9, 2, 40])
    all_BV = hidden_BD @ model.unembedding_VD.T
    found_BN = vocabulary.logits(hidden_BD, model.unembedding_VD)
    torch.testing.assert_close(found_BN, all_BV[:, [2, 9, 40]])
    assert vocabulary.token(torch.tensor([0, 2, 1])).tolist() == [2, 40, 9]
    p_BV = vocabulary.spread(torch.tensor([[0.5, 0.2, 0.3]]))
    assert p_BV.shape == (1, 64)
    assert p_BV[0, [2, 9, 40]].tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert float(p_BV.sum()) == pytest.approx(1)


@pytest.mark.parametrize("tokens", [[], [1, 1], [-1, 3], [64]])
def test_tokens_that_are_no_set_of_ids_are_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="different ids below 64"):
        DraftVocabulary(toy_model(2), tokens)


@pytest.mark.parametrize(
    ("kind", "context", "packed"),
    [
        ("sequential", "chained", False),
        ("sequential", "chained", True),
        ("sequential", "trunk", True),
        ("parallel", "chained", True),
        ("linear", "chained", True),
    ],
)
def test_greedy_text_is_the_same_and_left_out_tokens_are_never_drafted(
    kind: str, context: str, packed: bool
) -> None:
    hidden = "pre_norm" if context == "trunk" else "post_norm"
    model = taught_model(kind, hidden=hidden, context=context)
    some = prompts(5, 1, 20)
    expected, _ = generate_many(model, some, max_new_tokens=40)
    if packed:
        model = pack_for_decoding(copy.deepcopy(model), smallest=0)
    vocabulary = DraftVocabulary(model, SOME)
    found, figures = generate_many(
        model, some, max_new_tokens=40, speculative=3, draft_vocabulary=vocabulary
    )
    assert [text.ids for text in found] == [text.ids for text in expected]
    assert figures[0].acceptance[0] > 0
    # the trunk says what is never drafted all the same
    assert any(token % 2 == 0 for text in found for token in text.ids[text.prompt :])


def test_drawn_texts_follow_the_same_distribution() -> None:
    model = taught_model("sequential")
    (prompt,) = prompts(6)
    both = []
    for count, seed in ((0, 1), (3, 2)):
        texts, _ = generate_many(
            model, [prompt] * 3000, max_new_tokens=3, sampling=Sampling(1.2, 0.95, seed),
            speculative=count, draft_vocabulary=DraftVocabulary(model, SOME),
        )  # fmt: skip
        both.append(torch.tensor([text.ids[text.prompt :] for text in texts]))
    for places in ([0], [1], [2], [0, 1], [1, 2]):
        assert p_value(code(both[0][:, places]), code(both[1][:, places])) > 1e-5, places


def test_a_directory_keeps_its_draft_vocabulary(tmp_path: Path) -> None:
    model = toy_model(2)
    assert load_draft_vocabulary(tmp_path, model).token(torch.tensor([5])).tolist() == [5]
    write_draft_vocabulary(tmp_path, [7, 3, 11])
    vocabulary = load_draft_vocabulary(tmp_path, model)
    assert vocabulary.token(torch.tensor([0, 1, 2])).tolist() == [3, 7, 11]
    assert len(list(generate(model, [1], max_new_tokens=5, speculative=1,
                             draft_vocabulary=vocabulary))) == 5  # fmt: skip


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"tokens": 3}', '{"tokens": []}', '{"tokens": [1, "2"]}',
     '{"tokens": [true]}', '{"tokens": [64]}', '{"tokens": [1, 1]}', json.dumps({"tokens": None})],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / DRAFT_VOCABULARY_NAME).write_text(content)
    with pytest.raises(CheckpointError, match=r"no draft vocabulary of this model .* Remove it"):
        load_draft_vocabulary(tmp_path, toy_model(2))


def test_small_vocabularies_are_not_trimmed() -> None:
    assert pays_to_trim(8000, 49152)
    assert not pays_to_trim(2000, 4096)
    assert not pays_to_trim(30000, 49152)
