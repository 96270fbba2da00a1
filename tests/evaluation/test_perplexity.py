import math

import pytest
import torch

from tests.model.toys import toy_model
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.evaluation.perplexity import TextFigures, measure_text
from wmtp.loss import Workspace
from wmtp.runtime.device import choose_device

CPU = choose_device("cpu", "fp32")
TEXT = "the quick brown fox jumps over the lazy dog. " * 4


@pytest.mark.parametrize("window", [5, 1000])
@torch.no_grad()
def test_every_token_but_the_first_is_predicted_once(window: int) -> None:
    tokenizer = train_tokenizer(iter([TEXT]), 280)
    model = toy_model(1, vocab_size=tokenizer.vocab_size, max_seq_length=1000)
    figures = measure_text(model, tokenizer, [TEXT], CPU, Workspace(), window=window)
    assert figures is not None
    ids = torch.tensor([*tokenizer.bos_ids, *tokenizer.encode(TEXT)])
    assert figures.tokens == len(ids) - 1
    assert figures.text_bytes == len(TEXT)  # the token before the text is not text
    nats = 0.0
    for start in range(0, len(ids) - 1, window):
        part = ids[start : start + window + 1]
        logits = model.next_token_hidden(part[None, :-1])[0] @ model.unembedding_VD.T
        nats += torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum").item()
    assert figures.nats == pytest.approx(nats, rel=1e-5)
    assert figures.perplexity == pytest.approx(math.exp(nats / figures.tokens), rel=1e-4)
    assert figures.bits_per_byte == pytest.approx(nats / math.log(2) / len(TEXT), rel=1e-5)


def test_nothing_to_predict_is_none_and_not_a_number() -> None:
    tokenizer = train_tokenizer(iter([TEXT]), 280)
    model = toy_model(1, vocab_size=tokenizer.vocab_size)
    assert measure_text(model, tokenizer, [""], CPU, Workspace(), window=8) is None


def test_short_texts_share_rows_and_do_not_see_each_other() -> None:
    """One pass for many, and each what it has alone; in an architecture that mixes, one by one."""
    tokenizer = train_tokenizer(iter([TEXT]), 280)
    model = toy_model(1, vocab_size=tokenizer.vocab_size, max_seq_length=64)
    texts = ["the quick", "", "fox", TEXT, "jumps over", "lazy dog. the lazy dog", "the"]
    passes = []
    model.trunk.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[1]))

    def measure(texts: list[str]) -> TextFigures:
        figures = measure_text(model, tokenizer, texts, CPU, Workspace(), window=40)
        assert figures is not None
        return figures

    together = measure(texts)
    assert len(passes) < together.documents
    assert max(passes) <= 40
    alone = [measure([text]).each[0] for text in texts if text]
    assert [one[:2] for one in together.each] == [one[:2] for one in alone]
    assert [one[2] for one in together.each] == pytest.approx([one[2] for one in alone], rel=1e-5)
    passes.clear()
    model.trunk.longest_packed_row = 0
    apart = measure(texts)
    assert len(passes) >= apart.documents
    assert apart.nats == pytest.approx(together.nats, rel=1e-5)
