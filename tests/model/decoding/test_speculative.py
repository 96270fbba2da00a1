"""Drafts change how fast a text comes, and nothing about the text."""

import pytest
import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from tests.model.toys import toy_model
from wmtp.model.decoding.decoder import Decoder
from wmtp.model.generate import GREEDY, Sampling, generate, generate_many
from wmtp.model.multi_token import MultiTokenModel

from .taught import prompts, taught_model

MODELS = [
    ("sequential", "llama", "post_norm", "chained", 12),
    ("sequential", "llama", "pre_norm", "chained", 4),
    ("sequential", "qwen3", "post_norm", "chained", 4),
    ("sequential", "gpt2", "post_norm", "chained", 4),
    ("sequential", "llama", "pre_norm", "trunk", 12),
    ("sequential", "gpt2", "post_norm", "trunk", 4),
    ("parallel", "llama", "post_norm", "chained", 12),
    ("parallel", "gpt2", "post_norm", "chained", 4),
    ("linear", "llama", "post_norm", "chained", 12),
]
LENGTHS = (1, 2, 20, 3, 7)
TEXTS = 6000


def plain(model: MultiTokenModel, prompt: list[int], count: int, **options: object) -> list[int]:
    return list(generate(model, prompt, max_new_tokens=count, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "trunk", "hidden", "context", "count"), MODELS)
def test_greedy_text_is_that_of_plain_decoding(
    kind: str, trunk: str, hidden: str, context: str, count: int
) -> None:
    """Texts of 96 tokens of each kind of heads, one by one and four at once; drafts are taken."""
    model = taught_model(kind, trunk, hidden, context)
    all_prompts = prompts(*(LENGTHS * 4)[:count])
    tokens = 96 if count == 12 else 32
    texts = [plain(model, prompt, tokens) for prompt in all_prompts]
    lengths = (1, 2, 3, "auto")
    for number, (prompt, text) in enumerate(zip(all_prompts, texts, strict=True)):
        assert plain(model, prompt, tokens, speculative=lengths[number % 4]) == text
    for start in range(0, count, 4):
        some = all_prompts[start : start + 4]
        found, figures = generate_many(model, some, max_new_tokens=tokens, speculative=3)
        assert [text.ids[text.prompt :] for text in found] == texts[start : start + 4]
        assert figures[0].acceptance[0] > 0.5
        assert figures[0].tokens_per_pass > 1.5


def test_texts_of_a_batch_do_not_see_each_other() -> None:
    """With and without drafts: those that end early stand still beside those that go on."""
    model = taught_model("sequential")
    some = prompts(20, 1, 7, 3)
    alone = [plain(model, prompt, 60) for prompt in some]
    stop = alone[0][9]
    expected = [text[: text.index(stop)] if stop in text else text for text in alone]
    for count in (0, 3):
        texts, _ = generate_many(model, some, max_new_tokens=60, stop_ids=[stop], speculative=count)
        assert [text.ids[text.prompt :] for text in texts] == expected
        assert texts[0].reason == "stop_id"


@pytest.mark.parametrize("kind", ["sequential", "parallel", "linear"])
def test_a_stop_token_inside_a_draft_ends_the_text_there(kind: str) -> None:
    model = taught_model(kind)
    (prompt,) = prompts(5)
    text = plain(model, prompt, 100)
    for stop in set(text):
        expected = text[: text.index(stop)]
        assert plain(model, prompt, 100, stop_ids=[stop], speculative=3) == expected


@pytest.mark.parametrize("count", [1, 2, 3, "auto"])
def test_the_context_is_filled_to_its_last_position_and_not_beyond(count: int) -> None:
    model = taught_model("sequential")
    (prompt,) = prompts(150)
    text = plain(model, prompt, 1000)
    assert len(prompt) + len(text) == 193  # the last one is written, but can no longer be read
    assert plain(model, prompt, 1000, speculative=count) == text
    for wanted in (1, 2, 3, 4, 9):
        assert plain(model, prompt, wanted, speculative=count) == text[:wanted]


def test_a_model_without_heads_decodes_plainly() -> None:
    model = toy_model(1)
    assert plain(model, [1, 2], 20, speculative=3) == plain(model, [1, 2], 20)


def test_caches_that_are_full_of_holes_are_closed_up() -> None:
    """Texts of very different acceptance leave holes; the room they take stays bounded."""
    model = taught_model("parallel")
    some = prompts(1, 30, 2, 9)
    decoder = Decoder(model, some, max_new_tokens=150, sampling=GREEDY, stop_ids=(), speculative=3)
    while not decoder.done:
        decoder.round()
    for text, prompt in zip(decoder.texts, some, strict=True):
        assert text.ids[text.prompt :] == plain(model, prompt, 150)
    cache = decoder._reader._cache  # type: ignore[attr-defined]
    assert cache.slots_BT.shape[1] <= 3 * 180


@pytest.mark.parametrize(
    ("kind", "context"),
    [("sequential", "chained"), ("sequential", "trunk"), ("parallel", "chained")],
)
def test_a_long_context_costs_nothing_before_it_is_used(kind: str, context: str) -> None:
    """Neither states nor rotations are kept for places that no text has reached."""
    model = toy_model(4, kind=kind, context=context, max_seq_length=1 << 24)
    assert len(plain(model, [1, 2, 3], 20, speculative=3)) == 20
    cos, _ = model.trunk.rope._table  # type: ignore[misc]
    assert len(cos) < 500
    decoder = Decoder(
        model, [[1, 2, 3]], max_new_tokens=20, sampling=GREEDY, stop_ids=(), speculative=3
    )
    while not decoder.done:
        decoder.round()
    held_BTD = decoder._drafter._history._held_BTD  # type: ignore[union-attr]
    assert held_BTD.shape[1] < 500


# sampling -----------------------------------------------------------------------------------------


def sampled(model: MultiTokenModel, count: int, rows: int, seed: int, sampling: Sampling) -> Tensor:
    """Three tokens after one prompt, drawn many times, ``[rows, 3]``."""
    (prompt,) = prompts(6)
    texts, _ = generate_many(
        model, [prompt] * rows, max_new_tokens=3,
        sampling=Sampling(sampling.temperature, sampling.top_p, seed), speculative=count,
    )  # fmt: skip
    return torch.tensor([text.ids[text.prompt :] for text in texts])


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("sequential", Sampling(1.0)),
        ("sequential", Sampling(1.5, 0.9)),
        ("parallel", Sampling(1.5, 0.9)),
        ("linear", Sampling(1.0)),
    ],
    ids=str,
)
def test_drawn_texts_follow_the_same_distribution(kind: str, sampling: Sampling) -> None:
    """A chi-square test for each position and for each pair.

    The smallest of 4 x 5 p-values is below 1e-5 in 0.02 % of all runs; seeds are fixed.
    """
    model = taught_model(kind)
    one, two = (sampled(model, count, TEXTS, seed, sampling) for count, seed in ((0, 1), (3, 2)))
    places = [[0], [1], [2], [0, 1], [1, 2]]
    for some in places:
        assert p_value(code(one[:, some]), code(two[:, some])) > 1e-5, some


def test_the_test_would_find_drafts_that_are_accepted_too_easily() -> None:
    """An eighth of all texts drawn from another distribution."""
    model = taught_model("sequential")
    one, two = (sampled(model, 0, TEXTS, seed, Sampling(1.0)) for seed in (1, 2))
    other = sampled(model, 0, TEXTS // 8, 3, Sampling(3.0))
    two[: len(other)] = other
    assert p_value(code(one[:, [1]]), code(two[:, [1]])) < 1e-5


def code(tokens_NK: Tensor) -> Tensor:
    """One number for each row of tokens."""
    return (tokens_NK * 64 ** torch.arange(tokens_NK.shape[1])).sum(1)


def p_value(one: Tensor, other: Tensor) -> float:
    """Of the hypothesis that both were drawn alike; rare outcomes are counted together."""
    values, places = torch.cat((one, other)).unique(return_inverse=True)
    counts = torch.stack([
        part.bincount(minlength=len(values)) for part in places.split([len(one), len(other)])
    ])  # fmt: skip
    rare = counts.sum(0) < 20
    table = torch.cat((counts[:, ~rare], counts[:, rare].sum(1, keepdim=True)), dim=1)
    table = table[:, table.sum(0) > 0]
    return float(chi2_contingency(table.numpy()).pvalue)
