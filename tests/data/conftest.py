import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp.data.encoding import EncodedDocument
from wmtp.data.shard_writer import write_shards
from wmtp.data.shards import Shards, open_shards
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer

MakeShards = Callable[..., Shards]
WriteLines = Callable[[Sequence[Any]], Path]


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """Enough words that some tokens are longer than a byte."""
    texts = ["def add(a, b):\n    return a + b\n", "the quick brown fox jumps over", "한국어 문장"]
    return train_tokenizer(texts * 4, vocab_size=320)


@pytest.fixture
def make_shards(tmp_path: Path, tokenizer: TextTokenizer) -> MakeShards:
    """Shards of given ids, with given columns."""

    def make(
        documents: Sequence[Sequence[int]],
        wanted: Sequence[Sequence[bool]] | None = None,
        weights: Sequence[Sequence[float]] | None = None,
        name: str = "shards",
        rewards: Sequence[float | None] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> Shards:
        with write_shards(tmp_path / name, tokenizer) as writer:
            for index, ids in enumerate(documents):
                writer.add(
                    EncodedDocument(
                        f"file:{index + 1}",
                        np.array(ids, dtype=np.int64),
                        np.array(wanted[index] if wanted else [True] * len(ids)),
                        np.array(weights[index], dtype=np.float32) if weights else None,
                        rewards[index] if rewards else None,
                        groups[index] if groups else None,
                    )
                )
        return open_shards(tmp_path / name)

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """A JSONL file of the given rows; bytes go in as they are."""

    def write(rows: Sequence[Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("WMTP_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("WMTP_DATA names no folder of real data")
    return Path(folder)
