"""What is promised where rounding decides between two tokens."""

import copy

import pytest
import torch

from wmtp.model.generate import generate, generate_many
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.near_ties import near_tie

from .taught import prompts, taught_model


def full_of_ties(model: MultiTokenModel) -> MultiTokenModel:
    """Token ``v + 32`` is unembedded as ``v`` is, up to the last bits of float32."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        W_VD = model.unembedding_VD
        noise_VD = torch.randn(W_VD[:32].shape, generator=generator) * 1e-7
        W_VD[32:] = W_VD[:32] * (1 + noise_VD)
    return model


@torch.no_grad()
def gaps(model: MultiTokenModel, prompt: list[int], text: list[int]) -> list[tuple[float, bool]]:
    """By how much plain decoding liked another token better, at each place; is there a near tie."""
    cache, found = model.new_cache(), []
    hidden_BSD = model.next_token_hidden(torch.tensor([prompt]), cache=cache)
    for token in text:
        logits_V = model.unembed(hidden_BSD[0, -1]).float()
        first, second = logits_V.topk(2).values.tolist()
        tie = near_tie(logits_V, model.trunk.embedding_VD.dtype)
        found.append((first - float(logits_V[token]), first - second <= tie))
        assert found[-1][0] <= tie
        hidden_BSD = model.next_token_hidden(torch.tensor([[token]]), cache=cache)
    return found


@pytest.mark.parametrize("kind", ["sequential", "parallel", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_is_the_likeliest_or_nearly_tied_with_it(kind: str, dtype: torch.dtype) -> None:
    """And texts are those of plain decoding up to the first near tie, alone and in a batch."""
    model = full_of_ties(taught_model(kind)).to(dtype)
    some = prompts(5, 1, 20, 9)
    plain = [list(generate(model, prompt, max_new_tokens=40)) for prompt in some]
    alone = [list(generate(model, p, max_new_tokens=40, speculative=3)) for p in some]
    together, _ = generate_many(model, some, max_new_tokens=40, speculative=3)
    ties = 0
    for number, prompt in enumerate(some):
        measured = gaps(model, prompt, plain[number])
        first_tie = next((i for i, (_, tied) in enumerate(measured) if tied), 40)
        ties += sum(tied for _, tied in measured)
        for text in (alone[number], together[number].ids[len(prompt) :]):
            assert text[:first_tie] == plain[number][:first_tie]
            gaps(model, prompt, text)
    assert ties >= 40  # or nothing was tested


def test_without_near_ties_bf16_texts_are_those_of_plain_decoding() -> None:
    model = copy.deepcopy(taught_model("sequential")).to(torch.bfloat16)
    for prompt in prompts(5, 1, 20):
        text = list(generate(model, prompt, max_new_tokens=60))
        tied = [tie for _, tie in gaps(model, prompt, text)]
        drafted = list(generate(model, prompt, max_new_tokens=60, speculative=3))
        until = tied.index(True) if True in tied else 60
        assert drafted[:until] == text[:until]
        assert until > 10
