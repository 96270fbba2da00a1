"""What every kind of head beside every trunk must do."""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.model.toys import KINDS, TRUNKS, stream, toy_model
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.stored_config import SpecialTokens

TABLE = list(product(TRUNKS, KINDS))
H = 3


@pytest.mark.parametrize(("trunk", "kind"), TABLE)
@torch.no_grad()
def test_no_head_sees_the_future(trunk: str, kind: str) -> None:
    """Changing token p moves head h at s only from s = p - h on if it is teacher-forced, else p."""
    model = toy_model(H, kind=kind, trunk=trunk)
    S, p = 8, 5
    x_BT = stream(1, S + H, 1)[0]
    changed_BT = x_BT.clone()
    changed_BT[0, p] = (changed_BT[0, p] + 1) % 64

    def hidden(x: torch.Tensor) -> list[torch.Tensor]:
        return list(model(x[:, :S], x[:, 1:].unfold(1, H, 1)[:, :S]))

    for h, (before, after) in enumerate(zip(hidden(x_BT), hidden(changed_BT), strict=True)):
        moved = (before != after).any(-1)[0]
        first = p - h if kind == "sequential" else p
        assert not moved[:first].any()
        assert moved[first:].all()


@pytest.mark.parametrize(("trunk", "kind"), TABLE)
@torch.no_grad()
def test_packed_documents_equal_documents_alone(trunk: str, kind: str) -> None:
    model = toy_model(H, kind=kind, trunk=trunk)
    lengths = [5, 9, 7]
    S = sum(lengths)
    x = stream(1, S + H, 1)[0][0]
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    packed = model(x[None, :S], x[1:].unfold(0, H, 1)[None, :S], documents[None].int())
    start = 0
    for length in lengths:
        part = x[start : start + length + H]
        alone = model(part[None, :length], part[1:].unfold(0, H, 1)[None, :length])
        for h in range(H):
            reach = slice(start, start + length - h)  # where the target is in the document
            torch.testing.assert_close(
                packed[h][0, reach], alone[h][0, : length - h], atol=2e-5, rtol=1e-4
            )
        start += length


@pytest.mark.parametrize(("trunk", "kind"), TABLE)
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_a_saved_model_is_the_same_model(trunk: str, kind: str, tied: bool, tmp_path: Path) -> None:
    model = toy_model(H, kind=kind, trunk=trunk, tie_embeddings=tied)
    save_model(model, tmp_path, special_tokens=SpecialTokens(1, (2,), 0))
    loaded = load_model(tmp_path).eval()
    assert loaded.heads_shape == model.heads_shape
    saved, found = model.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, found[name]), name
    tokens_BS, targets_BSH = stream(2, 8, H)
    for one, other in zip(
        model(tokens_BS, targets_BSH), loaded(tokens_BS, targets_BSH), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("trunk", "kind"), TABLE)
@torch.no_grad()
def test_plain_transformers_loads_the_trunk(trunk: str, kind: str, tmp_path: Path) -> None:
    model = toy_model(H, kind=kind, trunk=trunk, tie_embeddings=True)
    save_model(model, tmp_path, special_tokens=SpecialTokens(1, (2,), 0))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens_BS, _ = stream(2, 8, H)
    ours_BSV = model.next_token_hidden(tokens_BS) @ model.unembedding_VD.T
    theirs_BSV = theirs(tokens_BS, use_cache=False).logits
    torch.testing.assert_close(ours_BSV, theirs_BSV, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("trunk", "kind"), TABLE)
def test_recomputing_changes_no_gradient(trunk: str, kind: str) -> None:
    tokens_BS, targets_BSH = stream(2, 8, H)
    gradients = []
    for recompute in (False, True):
        model = toy_model(H, kind=kind, trunk=trunk).train()
        model.set_dropout(0.0)
        model.set_gradient_checkpointing(recompute)
        sum(x.square().sum() for x in model(tokens_BS, targets_BSH)).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("trunk", "kind"), TABLE)
def test_a_frozen_trunk_gets_no_gradient(trunk: str, kind: str) -> None:
    tokens_BS, targets_BSH = stream(1, 8, H)
    model = toy_model(H, kind=kind, trunk=trunk, dropout=0.5).train()
    model.freeze_trunk()
    hidden = model(tokens_BS, targets_BSH)
    assert torch.equal(hidden[0], model(tokens_BS, targets_BSH)[0])  # nor dropout
    logits = [x @ W.T for x, W in zip(hidden, model.unembeddings * H, strict=False)]
    sum(x.square().sum() for x in logits).backward()
    assert all(p.grad is None for p in model.trunk.parameters())
    assert all(p.grad is not None for p in model.heads.parameters())


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_cached_decoding_equals_one_pass(trunk: str) -> None:
    model = toy_model(1, trunk=trunk)
    tokens_BS, _ = stream(1, 9, 1)
    whole = model.next_token_hidden(tokens_BS)
    cache = model.new_cache(9)
    first = model.next_token_hidden(tokens_BS[:, :4], cache=cache)
    model.next_token_hidden(tokens_BS[:, 4:6] * 0, cache=cache)  # a draft that is rejected
    cache.crop(4)
    rest = [model.next_token_hidden(tokens_BS[:, i : i + 1], cache=cache) for i in range(4, 9)]
    assert cache.length == 9
    torch.testing.assert_close(torch.cat((first, *rest), 1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("trunk", "kind"), TABLE)
def test_the_seed_alone_decides_the_start(trunk: str, kind: str) -> None:
    torch.manual_seed(3)
    one = toy_model(H, kind=kind, trunk=trunk).state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(4)
    other = toy_model(H, kind=kind, trunk=trunk).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator was not drawn from
