import math

import pytest
import torch

from tests.model.toys import toy_model
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.evaluation.perplexity import measure_text
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
