import math
from collections.abc import Iterator

import pytest
import torch

from tests.model.toys import toy_model
from wmtp.data.batches import Batch
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.evaluation.held_out import measure_heads
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


def rows_of(tokenizer: TextTokenizer, texts: list[str]) -> Iterator[Batch]:
    """Each text in a row of its own, with the token that ends it."""
    for text in texts:
        ids = torch.tensor([[*tokenizer.bos_ids, *tokenizer.encode(text), tokenizer.eos_id]])
        targets_BSH = torch.full((1, ids.shape[1], 1), -100)
        targets_BSH[0, :-1, 0] = ids[0, 1:]
        valid_BSH = targets_BSH >= 0
        yield Batch(
            tokens_BS=ids,
            targets_BSH=targets_BSH,
            valid_BSH=valid_BSH,
            documents_BS=None,
            reference_ce_BSH=None,
            loss_weights_BSH=None,
            valid_counts_H=(int(valid_BSH.sum()),),
            rows=range(1),
        )


def test_held_out_bits_per_byte_of_training_are_those_of_the_text() -> None:
    """The end of a text costs nats and no bytes: it is left out of both."""
    tokenizer = train_tokenizer(iter([TEXT]), 280)
    model = toy_model(1, vocab_size=tokenizer.vocab_size, max_seq_length=300)
    texts = [TEXT, "한글 jumps", "the"]
    wanted = measure_text(model, tokenizer, texts, CPU, Workspace(), window=300)
    assert wanted is not None
    lengths = tokenizer.bytes_of_ids
    assert lengths is not None
    rows, workspace = list(rows_of(tokenizer, texts)), Workspace()
    bytes_V = torch.from_numpy(lengths)
    found = measure_heads(model, rows, CPU, (1.0,), workspace, bytes_V=bytes_V)
    assert found["bits_per_byte"] == pytest.approx(wanted.bits_per_byte, rel=1e-5)
    assert "bits_per_byte" not in measure_heads(model, rows, CPU, (1.0,), workspace)
    bytes_V[tokenizer.eos_id] = 1  # that it would show
    worse = measure_heads(model, rows, CPU, (1.0,), workspace, bytes_V=bytes_V)
    assert worse["bits_per_byte"] != pytest.approx(wanted.bits_per_byte, rel=1e-3)
