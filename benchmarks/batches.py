"""How fast micro-batches come from shards, step by step from the bytes of the memory map on.

    python benchmarks/batches.py                        # shards of random documents, made for it
    python benchmarks/batches.py --shards FOLDER --batch-size 16 --max-length 1024
    python benchmarks/batches.py --markdown FILE

Rows are drawn in shuffled order, as in training. Processor time of one process, the least of
``--rounds``; a token is a position of a row, whatever is made of it.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from wmtp.data.batches import gather_rows
from wmtp.data.documents import NO_ORIGIN
from wmtp.data.encoding import PackedDocuments
from wmtp.data.order import rows_at
from wmtp.data.rows import Rows
from wmtp.data.shard_writer import write_shards
from wmtp.data.shards import Shards, open_shards
from wmtp.data.tokenizer_training import train_tokenizer

BATCHES = 50
KEPT_BYTES = 31 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of random documents")
    parser.add_argument("--document-length", type=int, default=300, help="mean, in tokens")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # In a training process glibc keeps large freed pieces for the next batch (see
    # wmtp/runtime/heap.py); here none has come and gone, and each batch would ask for new pages.
    np.ones(KEPT_BYTES, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = options.shards or random_shards(
            Path(folder) / "shards", options.tokens, options.document_length
        )
        lines = measure(open_shards(path), options)
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


def random_shards(path: Path, tokens: int, length: int) -> Path:
    """Shards of ids that mean nothing, in documents of geometrically distributed length."""
    generator = np.random.default_rng(0)
    lengths = generator.geometric(1 / length, size=tokens // length)
    tokenizer = train_tokenizer(["a few words for a tokenizer"], 260)
    with write_shards(path, tokenizer) as writer:
        for piece in np.array_split(lengths, 1 + tokens // 1_000_000):
            count = int(piece.sum())
            writer.add_packed(
                PackedDocuments(
                    names=("random",) * len(piece),
                    ids=generator.integers(0, 250, size=count, dtype=np.int32),
                    lengths=piece,
                    wanted=None,
                    weights=None,
                    rewards=None,
                    groups=(None,) * len(piece),
                    origins=(NO_ORIGIN,) * len(piece),
                    text_bytes=np.zeros(len(piece), dtype=np.int64),
                )
            )
    return path


def measure(shards: Shards, options: argparse.Namespace) -> list[str]:
    """The table."""
    size, length = options.batch_size, options.max_length
    rows = Rows(shards, length)
    full = (shards.manifest.tokens - length - 8) // length  # rows that do not reach the end
    if full < size:
        sys.exit(f"{shards.path} has {full} full rows: give more data, or a smaller batch.")
    order = rows_at(full, 0, 0, max(size, min(full // size, BATCHES) * size))
    windows = sliding_window_view(shards.tokens, length + 1)
    steps: dict[str, Callable[[Any], object]] = {
        "rows `[S+1]` as they are stored": lambda rows_B: windows[rows_B * length],
        "rows `[S+1]` as int64": lambda rows_B: windows[rows_B * length].astype(np.int64),
        "documents of all positions": lambda rows_B: rows.spans(rows_B, length + 1),
        "batch, 1 head": lambda rows_B: gather_rows(rows, rows_B, 1),
        "batch, 4 heads": lambda rows_B: gather_rows(rows, rows_B, 4),
    }
    seconds = dict.fromkeys(steps, float("inf"))
    for _ in range(options.rounds):
        for name, step in steps.items():  # in turns, so that other work meets all of them
            began = time.process_time()
            for start in range(0, len(order), size):
                step(order[start : start + size])
            seconds[name] = min(seconds[name], time.process_time() - began)
    manifest = shards.manifest
    return [
        f"{manifest.tokens:,} tokens in {manifest.documents:,} documents, batches of {size} rows "
        f"of {length}; Python {platform.python_version()}, numpy {np.__version__}, "
        f"{platform.machine()}",
        "",
        "| | million tokens per CPU second | ns per token |",
        "|---|---|---|",
        *(
            f"| {name} | {len(order) * length / taken / 1e6:,.0f} | "
            f"{taken / len(order) / length * 1e9:.2f} |"
            for name, taken in seconds.items()
        ),
    ]


if __name__ == "__main__":
    main()
