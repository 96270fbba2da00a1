"""What a frozen trunk says of a document does not depend on what else was asked."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.toys import toy_model
from wmtp.data.documents import BadLines, TokenDocument
from wmtp.data.encoding import encode_documents
from wmtp.data.rows import DocumentRewards, Rows
from wmtp.data.shard_writer import write_shards
from wmtp.data.shards import open_shards
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.runtime.device import choose_device
from wmtp.stage1.frozen_states import FrozenStates

LENGTHS = (5, 9, 30)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Three documents of token ids below 64, the last longer than a row."""
    tokenizer = train_tokenizer(["a b c"], 257)
    documents = [
        TokenDocument(f"d{i}", tuple(range(3 + i, 3 + i + length)))
        for i, length in enumerate(LENGTHS)
    ]
    with write_shards(tmp_path / "shards", tokenizer) as writer:
        for encoded in encode_documents(tokenizer, documents, BadLines()):
            writer.add(encoded)
    shards = open_shards(tmp_path / "shards")
    rewards = DocumentRewards(np.array([1, 0, 1], dtype=np.float32))
    return Rows(shards, 16, packed=False, rewards=rewards)


def job() -> Any:
    model = toy_model(1, vocab_size=300)
    return SimpleNamespace(model=model, device=choose_device("cpu", "fp32"))


def test_states_are_those_of_the_document_alone(rows: Rows) -> None:
    states, here = FrozenStates(job(), rows, limit_bytes=1 << 20), job()
    for document in (2, 0, 1, 0):
        start = int(rows.starts(np.array([document]))[0])
        stop = int(rows.stops(np.array([document]))[0])
        tokens = torch.tensor(np.asarray(rows.shards.tokens[start:stop], dtype=np.int64))[None]
        with torch.no_grad():
            expected = here.model.next_token_hidden(tokens)[0]
        assert torch.equal(states.all(document), expected)


def test_the_end_is_the_position_before_the_last_token(rows: Rows) -> None:
    states = FrozenStates(job(), rows, limit_bytes=1 << 20)
    end = states.end(0)
    assert end is not None
    assert torch.equal(end, states.all(0)[-2])  # the last token is what it looks towards
    assert states.end(2) is None  # its row was cut before its end


def test_without_room_nothing_but_ends_is_kept_and_nothing_changes(rows: Rows) -> None:
    roomy, cramped = (
        FrozenStates(job(), rows, limit_bytes=1 << 20),
        FrozenStates(job(), rows, limit_bytes=0),
    )
    for document in (0, 1, 2, 0):
        assert torch.equal(roomy.all(document), cramped.all(document))
    end, other = roomy.end(1), cramped.end(1)
    assert end is not None
    assert other is not None
    assert torch.equal(end, other)
    assert roomy.all(0) is roomy.all(0)
    assert cramped.all(0) is not cramped.all(0)


def test_few_lengths_are_read_where_each_new_shape_costs_a_compilation(rows: Rows) -> None:
    exact, few = job(), job()
    few.device = replace(few.device, shape_parts=4)
    lengths = {len(FrozenStates(few, rows, 1 << 20).all(document)) for document in range(3)}
    assert lengths == {8, 12, 16}  # quarters of a row of 16
    assert {len(FrozenStates(exact, rows, 1 << 20).all(d)) for d in range(3)} == {7, 11, 16}
    for document in range(3):
        wanted = FrozenStates(exact, rows, 1 << 20).all(document)
        found = FrozenStates(few, rows, 1 << 20).all(document)[: len(wanted)]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
