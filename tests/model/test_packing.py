"""Matrices laid out for decoding give what plain ones give."""

import copy

import pytest
import torch

from tests.model.decoding.taught import prompts, taught_model
from tests.model.toys import KINDS, toy_model
from wmtp.model import packing
from wmtp.model.generate import generate, generate_many
from wmtp.model.packing import PackedLinear, PackedMatrix, pack_for_decoding, packing_works

pytestmark = pytest.mark.skipif(
    not packing_works("cpu", torch.float32), reason="this build of torch has no oneDNN"
)


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_product_is_the_product(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix_OI = torch.randn(70, 40, generator=generator).to(dtype)
    x_1RI = torch.randn(1, rows, 40, generator=generator).to(dtype)
    expected = x_1RI.double() @ matrix_OI.double().T
    near = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(PackedMatrix(matrix_OI)(x_1RI).double(), expected, atol=near, rtol=0)


@pytest.mark.parametrize(
    ("kind", "trunk"), [*((kind, "llama") for kind in KINDS), ("sequential", "gpt2")]
)
def test_a_packed_model_writes_the_same_texts(kind: str, trunk: str) -> None:
    model = taught_model(kind, trunk)
    packed = pack_for_decoding(copy.deepcopy(model), smallest=0)
    some = prompts(5, 1, 20)
    expected, _ = generate_many(model, some, max_new_tokens=40)
    for count in (0, 3):
        found, _ = generate_many(packed, some, max_new_tokens=40, speculative=count)
        assert [text.ids for text in found] == [text.ids for text in expected]
    is_packed = PackedLinear in {type(module) for module in packed.modules()}
    assert is_packed


def test_where_it_does_not_work_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(3)
    packing_works.cache_clear()
    monkeypatch.setattr(packing.PackedMatrix, "__call__", lambda self, x: x @ torch.ones(32, 48))
    try:
        assert pack_for_decoding(model, smallest=0) is model
    finally:
        packing_works.cache_clear()
    assert PackedLinear not in {type(module) for module in model.modules()}
    assert len(list(generate(model, [1, 2], max_new_tokens=3, speculative=2))) == 3
