"""Attention in tiles: what the fused kernel gives, without ever holding all scores."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from tests.model.toys import KINDS, stream, toy_model
from wmtp.model import attention
from wmtp.model.attention import attend, rows_of_tile, tiled_attention
from wmtp.model.heads.sequential import mask_among
from wmtp.model.hf_attention import TILED
from wmtp.model.trunk import attention_mask

H = 3


def inputs(
    batch: int,
    heads: int,
    groups: int,
    rows: int,
    keys: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, and a gradient of the output."""
    draws = torch.Generator().manual_seed(seed)

    def tensor(heads: int, rows: int, *, learns: bool) -> Tensor:
        drawn = torch.randn(batch, heads, rows, width, generator=draws).to(dtype)
        return drawn.requires_grad_(learns)

    return (
        tensor(heads, rows, learns=True),
        tensor(groups, keys, learns=True),
        tensor(groups, keys, learns=True),
        tensor(heads, rows, learns=False),
    )


def with_gradients(output: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output, *torch.autograd.grad(output, given[:3], given[3])


def fused(given: tuple[Tensor, ...], mask: Tensor | None, causal: bool) -> Tensor:
    query, key, value = given[:3]
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def check_near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], limit: float) -> None:
    """Output and gradients, each relative to its largest number."""
    for name, one, other in zip(
        ("output", "queries", "keys", "values"), found, expected, strict=True
    ):
        error = (one.double() - other.double()).abs().max() / other.double().abs().max()
        assert error <= limit, f"{name}: {error:.1e}"


@pytest.mark.parametrize("seed", range(12))
def test_output_and_gradients_equal_the_fused_kernel_in_float64(seed: int) -> None:
    """Shapes are drawn: any batch, groups, heads of a group, rows, width, size of a tile."""
    draws = torch.Generator().manual_seed(seed)

    def number(most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=draws))

    groups, rows = number(3), number(40)
    given = inputs(
        number(3), groups * number(4), groups, rows, rows, number(20), torch.float64, seed
    )
    causal = seed % 3 > 0
    found = tiled_attention(*given[:3], None, causal=causal, tile_rows=number(rows + 5))
    expected = fused(given, None, causal)
    check_near(with_gradients(found, given), with_gradients(expected, given), 1e-13)


@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 64), (4, 2, 48), (6, 1, 80)])
def test_req4_float32_gradients_are_within_1e6_of_the_fused_kernel(
    heads: int, groups: int, width: int
) -> None:
    given = inputs(2, heads, groups, 300, 300, width)
    found = tiled_attention(*given[:3], None, causal=True)
    check_near(with_gradients(found, given), with_gradients(fused(given, None, True), given), 1e-6)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
def test_req4_bf16_gradients_are_within_1e2_of_the_path_without_tiles(
    heads: int, groups: int
) -> None:
    """Beside torch's own path where there is no fused kernel, and beside float64."""
    given = inputs(2, heads, groups, 300, 300, 64, torch.bfloat16)
    found = with_gradients(tiled_attention(*given[:3], None, causal=True), given)
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    with sdpa_kernel(SDPBackend.MATH):
        check_near(found, with_gradients(fused(given, None, True), given), 1e-2)
    exact = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in given)
    check_near(found, with_gradients(fused(exact, None, True), exact), 1e-2)


def test_a_wrong_tile_would_be_found() -> None:
    """The control of the limits above: keys moved by one position are far outside of them."""
    given = inputs(1, 2, 1, 64, 64, 16)
    moved = (given[0], given[1].roll(1, dims=2), given[2], given[3])
    found = with_gradients(tiled_attention(*moved[:3], None, causal=True), given)
    with pytest.raises(AssertionError, match="output"):
        check_near(found, with_gradients(fused(given, None, True), given), 1e-2)


DOCUMENTS = torch.tensor([[0] * 9 + [1] * 30 + [2], [0] * 40])


@pytest.mark.parametrize(
    ("mask", "causal"),
    [
        (attention_mask(40, 0, DOCUMENTS, torch.device("cpu")), True),
        (attention_mask(40, 0, DOCUMENTS, torch.device("cpu")), False),
        (mask_among(1, 40, None, torch.device("cpu")), False),
        (mask_among(3, 40, DOCUMENTS, torch.device("cpu")), False),
        (attention_mask(40, 7, None, torch.device("cpu")), False),
        (torch.rand(2, 4, 1, 40, generator=torch.Generator().manual_seed(0)) > 0.2, False),
    ],
    ids=["documents", "documents, not skipped", "depth 1", "depth 3", "cached", "keys of a head"],
)
@pytest.mark.parametrize("rows", [7, 64])
def test_masks_hide_what_the_fused_kernel_hides(mask: Tensor, causal: bool, rows: int) -> None:
    given = inputs(2, 4, 2, 40, mask.shape[-1], 8, torch.float64)
    found = tiled_attention(*given[:3], mask, causal=causal, tile_rows=rows)
    expected = fused(given, mask, False)
    check_near(with_gradients(found, given), with_gradients(expected, given), 1e-13)


def test_a_row_that_may_look_nowhere_gives_zeros_and_no_nan() -> None:
    given = inputs(1, 1, 1, 4, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[2] = False
    found = with_gradients(tiled_attention(*given[:3], mask, causal=True), given)
    assert not found[0][:, :, 2].any()
    assert not found[1][:, :, 2].any()
    assert all(tensor.isfinite().all() for tensor in found)


def test_values_may_be_wider_than_keys_and_the_scale_may_be_given() -> None:
    query, key, value, _ = inputs(1, 2, 2, 20, 20, 8, torch.float64)
    value = torch.cat((value, value * 2), dim=3)
    found = tiled_attention(query, key, value, None, causal=True, scale=0.5, tile_rows=6)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.5)
    torch.testing.assert_close(found, expected)


def test_what_cannot_be_meant_is_refused() -> None:
    query, key, value, _ = inputs(1, 3, 2, 4, 4, 8)
    with pytest.raises(ValueError, match="3 heads cannot share 2 groups"):
        tiled_attention(query, key, value, None, causal=True)
    with pytest.raises(ValueError, match=r"bool, not torch\.float32"):
        tiled_attention(key, key, value, torch.zeros(4, 4), causal=False)


def test_autocast_decides_the_dtype_as_of_the_fused_kernel() -> None:
    given = inputs(1, 2, 1, 20, 20, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tiled_attention(*given[:3], None, causal=True)
        expected = fused(given, None, True)
        assert found.dtype == expected.dtype == torch.bfloat16
        # a backward pass that somebody runs within autocast is not touched by it
        inside = torch.autograd.grad(found, given[:3], given[3].bfloat16(), retain_graph=True)
    outside = torch.autograd.grad(found, given[:3], given[3].bfloat16())
    assert [tensor.dtype for tensor in inside] == [torch.float32] * 3
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)


def test_recomputed_attention_gives_the_same_gradients() -> None:
    given = inputs(1, 2, 1, 40, 40, 8)

    def run(*three: Tensor) -> Tensor:
        return tiled_attention(*three, None, causal=True, tile_rows=16)

    plain = with_gradients(run(*given[:3]), given)
    again = with_gradients(checkpoint(run, *given[:3], use_reentrant=False), given)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_tiles_hold_as_many_rows_as_memory_allows() -> None:
    assert rows_of_tile(1, 64) == attention.MOST_ROWS
    assert rows_of_tile(4 * 16, 2048) * 4 * 16 * 2048 * 4 <= attention.TILE_BYTES
    assert rows_of_tile(10**6, 10**6) == attention.FEWEST_ROWS


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_req4_no_tensor_has_batch_times_heads_times_positions_squared_elements() -> None:
    batch, heads, rows = 1, 4, 1024
    given = inputs(batch, heads, 2, rows, rows, 16)
    with Largest() as tiled:
        with_gradients(attend(*given[:3], None, tiled=True), given)
    with torch.no_grad(), Largest() as measured:
        attend(*given[:3], None, tiled=True)
    with sdpa_kernel(SDPBackend.MATH), Largest() as control:
        with_gradients(fused(given, None, True), given)
    everything = batch * heads * rows**2
    assert tiled.elements <= everything // 8
    assert measured.elements <= everything // 8
    assert control.elements >= everything  # the watch would see it


def test_req4_no_key_is_repeated_or_broadcast_into_a_product() -> None:
    class Products(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.mm):
                self.seen += 1
                for tensor in args:
                    assert all(
                        step or size == 1
                        for step, size in zip(tensor.stride(), tensor.shape, strict=True)
                    )
            return func(*args, **(kwargs or {}))

    given = inputs(2, 4, 2, 50, 50, 16)
    with Products() as products:
        with_gradients(tiled_attention(*given[:3], None, causal=True, tile_rows=16), given)
    assert products.seen == 4 * (2 + 5)  # tiles; forward and backward


def test_decoding_from_a_cache_is_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a tile")

    monkeypatch.setattr(attention, "tiled_attention", refuse)
    query, key, value, _ = inputs(1, 2, 1, 1, 9, 8)
    with torch.no_grad():
        assert attend(query, key, value, None, tiled=True).shape == query.shape
    with pytest.raises(AssertionError, match="a tile"):  # the control: with gradients it is tiles
        attend(query, key, value, None, tiled=True)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_ROWS", 4)
    monkeypatch.setattr(attention, "FEWEST_ROWS", 4)


def gradients(tiled: bool, documents_BS: Tensor | None, **model: Any) -> list[Tensor]:
    tokens_BS, targets_BSH = stream(2, 10, H)
    built = toy_model(H, **model).train()
    built.set_dropout(0.0)
    built.set_gradient_checkpointing(model["trunk"] == "qwen3")
    built.set_tiled_attention(tiled)
    assert built.trunk.attention_is_lean
    hidden = built(tokens_BS, targets_BSH, documents_BS)
    sum((x.square() * x.detach().roll(1)).sum() for x in hidden).backward()
    return [p.grad for p in built.parameters() if p.grad is not None]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("trunk", "kind", "context"),
    [
        *(("llama", kind, "chained") for kind in KINDS),
        ("llama", "sequential", "trunk"),
        ("qwen3", "sequential", "chained"),
        ("gpt2", "sequential", "chained"),
        ("gpt_neox", "linear", "chained"),
        ("opt", "parallel", "chained"),
    ],
)
def test_whole_models_learn_the_same_with_tiles(
    trunk: str, kind: str, context: str, packed: bool
) -> None:
    documents = torch.tensor([[0] * 4 + [1] * 6, [0] * 9 + [1]]) if packed else None
    same = {"trunk": trunk, "kind": kind, "context": context}
    found, expected = gradients(True, documents, **same), gradients(False, documents, **same)
    # of the largest of all: a bias of the keys has no gradient but rounding
    limit = 1e-6 * max(float(one.abs().max()) for one in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=limit, rtol=1e-4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("trunk", ["llama", "gpt2"])
def test_trunks_make_tiles_when_they_are_told_to(
    trunk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = attention.tiled_attention

    def counted(*arguments: Any, **named: Any) -> Tensor:
        calls.append(1)
        return plain(*arguments, **named)

    monkeypatch.setattr(attention, "tiled_attention", counted)
    model = toy_model(H, trunk=trunk)
    for tiled in (True, False):
        model.set_tiled_attention(tiled)
        model(*stream(1, 8, H))
    assert len(calls) == 2 + (H - 1)  # layers and heads, once


def test_a_trunk_goes_back_and_stores_no_name_of_ours() -> None:
    model = toy_model(1, trunk="gpt2")
    model.set_tiled_attention(True)
    config = model.trunk.network.config
    assert config._attn_implementation == TILED
    assert TILED not in config.to_json_string()
    model.set_tiled_attention(False)
    assert config._attn_implementation == "sdpa"


def test_a_trunk_with_an_attention_of_its_own_says_so() -> None:
    model = toy_model(1, trunk="gpt2")
    model.trunk.network.set_attn_implementation("eager")
    model.set_tiled_attention(True)
    assert not model.trunk.attention_is_lean
    model.set_tiled_attention(False)
    assert model.trunk.attention_is_lean


def test_dropout_of_scores_is_left_to_transformers() -> None:
    model = toy_model(1, trunk="gpt2").train()
    model.set_dropout(0.5)
    model.set_tiled_attention(True)
    tokens_BS, _ = stream(1, 8, 1)
    one, other = (model(tokens_BS)[0] for _ in range(2))
    assert not torch.equal(one, other)
