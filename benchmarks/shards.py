"""How fast JSONL becomes shards, and where the time goes, beside the encoder alone.

    python benchmarks/shards.py --source a.jsonl.gz --tokenizer FOLDER [--split train] [--rounds 3]
    python benchmarks/shards.py --source a.jsonl.gz --tokenizer FOLDER --markdown FILE

Processor time of one process, the least of the rounds; MB are those of the texts in UTF-8. "The
encoder alone" is tiktoken's ``encode_ordinary`` on each text, its ids thrown away. The last row is
all that ``wmtp data prepare`` does, with what the rows above leave out: hashing the files, trying
the fast encoder, saving how far it is.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wmtp.data.documents import BadLines
from wmtp.data.encoding import encode_and_pack
from wmtp.data.fast_encoding import fast_encoder
from wmtp.data.json_blocks import parse_block
from wmtp.data.prepare import prepare
from wmtp.data.shard_writer import ShardWriter
from wmtp.data.sources import Source, list_files, make_source
from wmtp.data.text_files import read_blocks
from wmtp.data.tokenizer import TextTokenizer

Seconds = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--split", default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    source = make_source(options.source, options.split, "auto")
    if list_files(source).format != "jsonl":
        sys.exit(f"{options.source} is no JSONL of texts")
    tokenizer = TextTokenizer.load(options.tokenizer)
    best: Seconds = {}
    for _ in range(options.rounds):
        seconds, documents, size = steps(source, tokenizer)
        seconds["everything"] = whole(source, tokenizer)
        for name, taken in seconds.items():
            best[name] = min(taken, best.get(name, taken))
    lines = [
        f"{documents:,} documents, {size / 1e6:.1f} MB, {size / documents:.0f} bytes each; "
        f"{tokenizer.vocab_size:,} ids",
        "",
        "| | CPU seconds | microseconds per document | MB per CPU second |",
        "|---|---|---|---|",
        *(
            f"| {name} | {taken:.2f} | {taken / documents * 1e6:.1f} | {size / taken / 1e6:.1f} |"
            for name, taken in best.items()
        ),
    ]
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


def steps(source: Source, tokenizer: TextTokenizer) -> tuple[Seconds, int, int]:
    """Seconds of each step over all blocks, and how many documents and bytes there are."""
    names = ("read and unpack", "parse and split", "encode and pack", "write", "encoder alone")
    seconds: Seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        seconds[name] += time.process_time() - began

    encoder, found = fast_encoder(tokenizer), list_files(source)
    encode = encoder.encoding.encode_ordinary
    size = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        writer = ShardWriter(Path(folder), tokenizer, files)
        for path in found.files:
            blocks = read_blocks(path)
            while True:
                with timed("read and unpack"):
                    block = next(blocks, None)
                if block is None:
                    break
                with timed("parse and split"):
                    documents = parse_block(block, found.split).documents
                with timed("encode and pack"):
                    packed = encode_and_pack(tokenizer, documents, BadLines(), encoder)
                with timed("write"):
                    writer.add_packed(packed)
                texts = [s.text for d in documents for s in getattr(d, "segments", ())]
                with timed("encoder alone"):
                    for text in texts:
                        encode(text)
                size += int(packed.text_bytes.sum())
        return seconds, writer.documents, size


def whole(source: Source, tokenizer: TextTokenizer) -> float:
    """Seconds of all that the command does."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        prepare([source], tokenizer, Path(folder) / "shards")
        return time.process_time() - began


if __name__ == "__main__":
    main()
