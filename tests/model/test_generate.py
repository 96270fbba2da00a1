import pytest
import torch

from wmtp.errors import DataError
from wmtp.model.decoding.sampling import choose
from wmtp.model.generate import Sampling, generate

from .toys import stream, toy_model


@torch.no_grad()
def test_cached_decoding_equals_a_full_forward() -> None:
    model = toy_model(1, qk_norm=True)
    tokens, _ = stream(2, 20, 1)
    whole = model.next_token_hidden(tokens)
    cache = model.new_cache(20)
    pieces = [tokens[:, :7], tokens[:, 7:8], tokens[:, 8:15], tokens[:, 15:]]
    parts = [model.next_token_hidden(piece, cache=cache) for piece in pieces]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    model = toy_model(1)
    texts = [
        list(generate(model, [1, 2], max_new_tokens=25, sampling=Sampling(1.0, 0.95, seed)))
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_draws_follow_the_distribution_and_top_p_cuts_its_tail() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(20_000, 4)
    draws = torch.Generator().manual_seed(0)
    counts = choose(logits, Sampling(1.0), draws).flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.015, rtol=0)
    counts = choose(logits, Sampling(1.0, 0.8), draws).flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)


def test_a_stop_token_ends_the_text_and_is_not_given_out() -> None:
    model = toy_model(1)
    text = list(generate(model, [3, 4], max_new_tokens=10))
    stop = text[4]
    assert (
        list(generate(model, [3, 4], max_new_tokens=10, stop_ids=[stop]))
        == text[: text.index(stop)]
    )


def test_decoding_ends_where_the_context_does() -> None:
    model = toy_model(1, max_seq_length=16)
    tokens = list(generate(model, [1] * 10, max_new_tokens=100))
    assert len(tokens) == 7  # the last one is written, but can no longer be read


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "empty"), ([1] * 99, "99 tokens"), ([64], "0 to 63")]
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        next(generate(toy_model(1), prompt, max_new_tokens=1))
