"""Training and encoding a tokenizer, beside SentencePiece and tokenizers on the same text.

    python benchmarks/tokenizer.py $WMTP_DATA/ko/*.jsonl.xz
    python benchmarks/tokenizer.py FILES --vocab-size 8000 --only rustbpe,sentencepiece
    python benchmarks/tokenizer.py FILES --markdown benchmarks/results/tokenizer_cpu.md

5 % of each file's documents, chosen by a hash of their text, are held out; all else is trained on.
Each row runs in a process of its own that has read the texts: CPU seconds are those of training
alone, memory is the peak of the whole process, which holds the texts. Bytes per token are all bytes
held out over all tokens of them, each document encoded by itself. Encoding is the best of three
rounds.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmtp.data.fast_encoding import fast_encoder
from wmtp.data.sources import make_source, read_named_texts
from wmtp.data.splits import in_split
from wmtp.data.tokenizer_training import train_tokenizer

ROUNDS = 3


@dataclass
class Row:
    """What one way of making a tokenizer gave."""

    name: str
    train_seconds: float
    peak_gigabytes: float
    encode_megabytes: float
    bytes_per_token: float
    per_file: dict[str, float]
    lossy: int


Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
Decode = Callable[[Sequence[int]], str]
Texts = dict[str, tuple[list[str], list[str]]]


def read(files: Sequence[str]) -> Texts:
    """For each file the texts to train on and those held out."""
    found: Texts = {}
    for file in files:
        train: list[str] = []
        held_out: list[str] = []
        for _, text in read_named_texts(make_source(file, "all", "auto")):
            (held_out if in_split(text, "validation") else train).append(text)
        found[Path(file).name.split(".")[0]] = (train, held_out)
    return found


def learn_wmtp(texts: list[str], vocab_size: int, **options: Any) -> tuple[Encode, Decode]:
    tokenizer = train_tokenizer(texts, vocab_size, **options)
    return fast_encoder(tokenizer).encode_batch, tokenizer.decode


def learn_tokenizers(texts: list[str], vocab_size: int) -> tuple[Encode, Decode]:
    tokenizer = train_tokenizer(texts, vocab_size, trainer="tokenizers")
    return tokenizer.encode_batch, tokenizer.decode


def learn_sentencepiece(
    texts: list[str], vocab_size: int, model_type: str
) -> tuple[Encode, Decode]:
    """With the settings under which it loses as little as it can."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=f"{folder}/m",
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            max_sentence_length=1 << 24,
            num_threads=1,
            minloglevel=2,
        )
        model = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model")
    return lambda batch: model.encode(list(batch), num_threads=1), model.decode


WAYS: dict[str, Callable[[list[str], int], tuple[Encode, Decode]]] = {
    "rustbpe": lambda texts, size: learn_wmtp(texts, size, trainer="rustbpe"),
    "rustbpe, digits in pairs": lambda texts, size: learn_wmtp(
        texts, size, trainer="rustbpe", digits=2
    ),
    "tokenizers": learn_tokenizers,
    "sentencepiece bpe": lambda texts, size: learn_sentencepiece(texts, size, "bpe"),
}


def measure(name: str, files: Sequence[str], vocab_size: int) -> Row:
    """One row, in a process that does nothing else."""
    texts = read(files)
    train = [text for some, _ in texts.values() for text in some]
    start = time.process_time()
    encode, decode = WAYS[name](train, vocab_size)
    train_seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    sizes = {file: sum(len(t.encode()) for t in held) for file, (_, held) in texts.items() if held}
    tokens: dict[str, int] = {}
    best = float("inf")
    lossy = 0
    for turn in range(ROUNDS):
        seconds = 0.0
        for file in sizes:
            held_out = texts[file][1]
            start = time.process_time()
            encoded = encode(held_out)
            seconds += time.process_time() - start
            if turn == 0:
                tokens[file] = sum(map(len, encoded))
                pairs = zip(held_out, encoded, strict=True)
                lossy += sum(decode([int(i) for i in ids]) != text for text, ids in pairs)
        best = min(best, seconds)
    total = sum(sizes.values())
    return Row(
        name,
        train_seconds,
        peak / 1e9,
        total / best / 1e6,
        total / sum(tokens.values()),
        {file: sizes[file] / tokens[file] for file in sizes},
        lossy,
    )


def table(rows: Sequence[Row], texts: Texts, vocab_size: int) -> str:
    """The result as Markdown."""
    trained_on = sum(len(t.encode()) for train, _ in texts.values() for t in train)
    held_out = sum(len(t.encode()) for _, held in texts.values() for t in held)
    documents = sum(len(held) for _, held in texts.values())
    lines = [
        f"# Tokenizers of {vocab_size:,} ids",
        "",
        f"Trained on {trained_on:,} bytes of {len(texts)} files, measured on {held_out:,} bytes "
        f"held out ({documents:,} documents). {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, "
        f"{platform.machine()}, {os.cpu_count()} cores, one thread.",
        "",
        "| | training, CPU s | peak, GB | encoding, MB per CPU s | bytes per token "
        "| lossy documents |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.train_seconds:.1f} | {r.peak_gigabytes:.2f} | {r.encode_megabytes:.1f} | "
        f"{r.bytes_per_token:.3f} | {r.lossy:,} |"
        for r in rows
    ]
    files = list(rows[0].per_file)
    lines += ["", "Bytes per token of each file:", "", f"| | {' | '.join(files)} |"]
    lines.append("|---" * (len(files) + 1) + "|")
    for r in rows:
        lines.append(f"| {r.name} | " + " | ".join(f"{r.per_file[f]:.2f}" for f in files) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--only", help="names of rows, with commas between")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    names = [n for n in WAYS if not arguments.only or n in arguments.only.split(",")]
    os.environ["RAYON_NUM_THREADS"] = "1"
    rows = []
    for name in names:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, name, arguments.files, arguments.vocab_size).result())
        print(f"  {name}: {rows[-1].train_seconds:.1f} s", file=sys.stderr, flush=True)
    text = table(rows, read(arguments.files), arguments.vocab_size)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
