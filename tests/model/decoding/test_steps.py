"""Steps that are compiled say what they say as they are written."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from wmtp.errors import DeviceError
from wmtp.model.decoding import steps
from wmtp.model.decoding.decoder import Decoder
from wmtp.model.generate import GREEDY, Sampling, generate_many

from .taught import prompts, taught_model
from .test_speculative import MODELS, plain


@pytest.fixture
def as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep memory in the shapes that a compiler needs, and do without it."""
    monkeypatch.setattr(steps, "_compiled", lambda step: step)


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize(
    ("kind", "trunk", "hidden", "context"), [MODELS[i][:4] for i in (0, 3, 4, 6, 8)]
)
def test_texts_from_memory_of_one_shape_are_the_same(
    kind: str, trunk: str, hidden: str, context: str
) -> None:
    """Without drafts, with each number of them and as many as pay; alone and together."""
    model = taught_model(kind, trunk, hidden, context)
    some = prompts(1, 20, 3, 7)
    texts = [plain(model, prompt, 60) for prompt in some]
    for prompt, text in zip(some, texts, strict=True):
        for count in (0, 1, 3, "auto"):
            assert plain(model, prompt, 60, speculative=count, compiled=True) == text
    found, figures = generate_many(model, some, max_new_tokens=60, speculative=3, compiled=True)
    assert [text.ids[text.prompt :] for text in found] == texts
    assert figures[0].acceptance[0] > 0.5


@pytest.mark.usefixtures("as_written")
def test_memory_that_is_full_of_holes_is_closed_up_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a recorded step finds it; and it grows where that is not enough."""
    model = taught_model("sequential")
    (prompt,) = prompts(5)
    text = plain(model, prompt, 150)
    for slots, grown in ((170, 170), (16, 155)):
        monkeypatch.setattr(Decoder, "_capacity", lambda *_, slots=slots: slots)
        decoder = Decoder(
            model, [prompt], max_new_tokens=150, sampling=GREEDY, stop_ids=(), speculative=3,
            compiled=True,
        )  # fmt: skip
        for _ in range(5):  # plain ones and such with drafts
            decoder.round()
        cache = decoder._drafter._caches[0]  # type: ignore[union-attr]
        memory = cache.slots_BT.data_ptr(), cache.stack.layers[0]._held[0].data_ptr()
        used = []
        while not decoder.done:
            decoder.round()
            used.append(cache.used)
        assert decoder.texts[0].ids[5:] == text
        assert any(later < earlier for earlier, later in pairwise(used))
        assert cache.slots_BT.shape[1] >= grown
        same = memory == (cache.slots_BT.data_ptr(), cache.stack.layers[0]._held[0].data_ptr())
        assert same == (slots == 170)


@pytest.mark.usefixtures("as_written")
def test_drawn_texts_are_those_of_steps_as_they_are_written() -> None:
    model = taught_model("sequential")
    (prompt,) = prompts(6)
    options: dict[str, Any] = {"sampling": Sampling(1.0, 0.9, seed=3), "speculative": 3}
    assert plain(model, prompt, 60, compiled=True, **options) == plain(model, prompt, 60, **options)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # the compiler's own imports
def test_compiled_steps_give_the_same_text() -> None:
    """Really compiled: the trunk for one token and for four, and one graph for all depths."""
    model = taught_model("sequential")
    some = prompts(4, 30)
    for prompt in some:
        text = plain(model, prompt, 40)
        assert plain(model, prompt, 40, speculative=3, compiled=True) == text
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/c++",))
    torch._dynamo.reset()
    steps._compiled.cache_clear()
    with (
        torch._inductor.utils.fresh_cache(),
        pytest.raises(DeviceError, match=r"torch.compile does not work here .*C\+\+.* Decode w"),
    ):
        plain(taught_model("parallel"), [1, 2, 3], 5, compiled=True)
