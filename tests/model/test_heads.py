from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import load_model, save_model
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import SpecialTokens

from .toys import stream, toy_model

HIDDEN = ["post_norm", "pre_norm"]


@pytest.mark.parametrize("context", ["chained", "trunk"])
@pytest.mark.parametrize("hidden", HIDDEN)
@torch.no_grad()
def test_no_head_sees_the_future(hidden: str, context: str) -> None:
    """Changing token t moves head h at s only where t <= s + h (trap d)."""
    model = toy_model(4, hidden, context=context)
    S, H = 10, 4
    x = torch.randint(0, 64, (1, S + H), generator=torch.Generator().manual_seed(3))

    def outputs(x_BT: Tensor) -> Tensor:
        hidden = model(x_BT[:, :S], x_BT[:, 1:].unfold(1, H, 1))
        return torch.stack(hidden, 2)[0]  # [S, H, D]

    before = outputs(x)
    for t in range(S + H):
        changed = x.clone()
        changed[0, t] = (changed[0, t] + 1) % 64
        moved = (outputs(changed) != before).any(-1)
        s, h = torch.arange(S)[:, None], torch.arange(H)
        may_move = t <= s + h
        assert not (moved & ~may_move).any(), f"token {t} is seen too early"
        reads = (t == s + h) | (t == s)
        assert (moved | ~(may_move & reads)).all(), f"token {t} is not seen where it should be"


@pytest.mark.parametrize("hidden", HIDDEN)
@torch.no_grad()
def test_the_chain_equals_a_plain_reading_of_the_format(hidden: str) -> None:
    """Depth k: block(eh_proj [enorm(emb(x_{s+k})); hnorm(g_{k-1}(s))]), then shared_head.norm."""
    model = toy_model(3, hidden)
    tokens, targets = stream(1, 9, 3)
    found = model(tokens, targets)
    x = torch.cat((tokens, targets[:, -1, :2]), 1)[0]
    places = model.trunk.positions(9, None, cached=0)
    rope, mask = places.rope, None
    states = model.trunk(model.trunk.embed_tokens(tokens), places)
    post, pre = states.post_norm, states.pre_norm
    travelling = post if hidden == "post_norm" else pre
    for k, depth in enumerate(model.heads.depths, start=1):
        rows = []
        for s in range(9):
            e = depth.enorm(model.trunk.embed_tokens.weight[x[s + k]])
            g = depth.hnorm(travelling[0, s])
            rows.append(depth.eh_proj.weight @ torch.cat((e, g)))
        y = depth.block(torch.stack(rows)[None], rope, mask)
        n = depth.shared_head.norm(y)
        torch.testing.assert_close(found[k], n, atol=2e-5, rtol=1e-5)
        travelling = n if hidden == "post_norm" else y


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("trunk", ["llama", "qwen3"])
@torch.no_grad()
def test_the_context_of_the_trunk_equals_a_plain_reading_of_the_format(
    hidden: str, trunk: str
) -> None:
    """Row s of depth k alone: all that it may see is made one by one, and the last row asked."""
    H, S = 4, 7
    model = toy_model(H, hidden, context="trunk", trunk=trunk)
    tokens, targets = stream(1, S, H)
    found = model(tokens, targets)
    x = torch.cat((tokens, targets[:, -1, : H - 1]), 1)[0]
    states = model.trunk(model.trunk.embed(tokens), model.trunk.positions(S, None, cached=0))
    g_0 = (states.post_norm if hidden == "post_norm" else states.pre_norm)[0]
    for s in range(S):
        chain = [g_0[s]]  # g_0(s), g_1(s), ...
        for k, depth in enumerate(model.heads.depths, start=1):
            rows = [(x[p], g_0[p - 1] if p else torch.zeros(32)) for p in range(s + 2)]
            rows += [(x[s + 1 + j], chain[j]) for j in range(1, k)]
            joined = [
                depth.eh_proj.weight
                @ torch.cat((depth.enorm(model.trunk.embed_tokens.weight[t]), depth.hnorm(g)))
                for t, g in rows
            ]
            places = model.trunk.positions(len(rows), None, cached=0)
            y = depth.block(torch.stack(joined)[None], places.rope, None)[0, -1]
            n = depth.shared_head.norm(y)
            torch.testing.assert_close(found[k][0, s], n, atol=3e-5, rtol=1e-5)
            chain.append(n if hidden == "post_norm" else y)


def test_mixed_contexts_take_turns_in_training_and_evaluation_is_chained() -> None:
    mixed, chained, trunk = (
        toy_model(4, context=context) for context in ("mix", "chained", "trunk")
    )
    batch = stream(2, 9, 4)

    def outputs(model: MultiTokenModel, step: int) -> Tensor:
        model.begin_step(step)
        return torch.stack(model(*batch))

    for step, one in enumerate((chained, trunk, chained, trunk)):
        assert outputs(mixed.train(), step).equal(outputs(one.train(), step))
        assert outputs(mixed.eval(), step).equal(outputs(chained.eval(), step))


@pytest.mark.parametrize("context", ["chained", "trunk"])
@pytest.mark.parametrize("hidden", HIDDEN)
@torch.no_grad()
def test_packed_documents_equal_documents_alone(hidden: str, context: str) -> None:
    """Where a target is valid, every head says what it says without the other documents."""
    model = toy_model(3, hidden, context=context)
    H, lengths = 3, [5, 9, 7]
    x = torch.randint(0, 64, (sum(lengths) + H,), generator=torch.Generator().manual_seed(5))
    S = sum(lengths)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    packed = model(x[None, :S], x[1:].unfold(0, H, 1)[None, :S], documents[None].int())
    start = 0
    for length in lengths:
        own = torch.cat((x[start : start + length], torch.zeros(H, dtype=torch.long)))
        alone = model(own[None, :length], own[1:].unfold(0, H, 1)[None, :length])
        for h in range(H):
            valid = length - 1 - h
            torch.testing.assert_close(
                packed[h][0, start : start + valid], alone[h][0, :valid], atol=2e-5, rtol=1e-5
            )
        start += length


@pytest.mark.parametrize("hidden", HIDDEN)
@torch.no_grad()
def test_new_heads_begin_as_the_trunks_prediction_at_half_its_confidence(
    hidden: str, tmp_path: Path
) -> None:
    save_model(toy_model(1), tmp_path, special_tokens=SpecialTokens(None, ()))
    model = load_model(tmp_path, HeadsShape(4, hidden))  # type: ignore[arg-type]
    first, *others = model(*stream(2, 12, 4))
    for head in others:
        torch.testing.assert_close(head, first / 2, atol=1e-4, rtol=1e-4)


def gradients(model: MultiTokenModel) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    hidden = model(*stream(2, 12, 3))
    sum((h.square() * (i + 1)).sum() for i, h in enumerate(hidden)).backward()  # type: ignore[union-attr]
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("context", ["chained", "trunk"])
def test_recomputing_gives_the_same_gradients(context: str) -> None:
    plain = gradients(toy_model(3, context=context))
    model = toy_model(3, context=context)
    model.set_gradient_checkpointing(True)
    recomputed = gradients(model)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_frozen_trunk_gets_no_gradient_and_the_heads_the_same() -> None:
    free = gradients(toy_model(3))
    model = toy_model(3)
    model.freeze_trunk()
    frozen = gradients(model)
    assert frozen
    assert all(name.startswith("heads.") for name in frozen)
    assert all(torch.equal(free[name], frozen[name]) for name in frozen)


def test_a_trunk_from_scratch_does_not_depend_on_the_horizon() -> None:
    from wmtp.model.multi_token import build_model

    from .toys import shape

    one, four = (build_model(shape(), HeadsShape(h), seed=7).trunk.state_dict() for h in (1, 4))
    assert all(torch.equal(one[name], four[name]) for name in one)


@torch.no_grad()
def test_logits_are_only_missing_where_a_head_has_nothing_to_read() -> None:
    model = toy_model(3)
    tokens, targets = stream(1, 8, 3)
    known, blind = model.logits(tokens, targets), model.logits(tokens)
    missing = blind.isnan().any(-1)[0]
    assert missing.tolist() == [[s + h >= 8 for h in range(3)] for s in range(8)]
    torch.testing.assert_close(blind[0][~missing], known[0][~missing])
