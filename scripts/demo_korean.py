"""The demo behind ``make demo-korean DATA=folder``: raw Korean files to a model that writes.

    python scripts/demo_korean.py --data FOLDER [--steps N]

Reads raw corpora and cleans them, trains a tokenizer and a small model with four heads on what is
left, measures it on documents that were held back beside what gzip, bzip2, xz and PPMd make of the
same bytes, lets it write with and without its heads, and exports it to GGUF for llama.cpp, which it
then asks if npm could get it. Everything it runs is shown and can be typed by hand. FOLDER has
``ko/*.jsonl.xz`` and, if there are any, raw files in ``ko_raw/``; ``recipes/sources/korean.yaml``
says which.
"""

import argparse
import bz2
import gzip
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyppmd
from demo import command, say, wmtp

from wmtp.errors import ConfigError
from wmtp.runtime.processor import multiplies_bf16
from wmtp.verify.llama_cpp_engine import find_engine

ROOT = Path("runs/korean")
TEXT, TOKENIZER, SHARDS = ROOT / "text", ROOT / "tokenizer", ROOT / "shards"
RUN = ROOT / "small"
PROMPTS = ("이 영화는", "이 문서에서는")
GATE, LEAD = 1.75, 0.10
"""Bits per byte that the model must reach, and how far it must stay below PPMd alone."""

STEPS_WITHOUT_BF16 = 400
"""A processor without bf16 products of its own takes twice as long for a step."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="optimizer steps; those of the recipe if absent")
    given = parser.parse_args()
    if not any(given.data.glob("ko/*.jsonl*")):
        print(
            f"error: {given.data} has no ko/*.jsonl.xz: put JSONL files with a text in each line "
            "there (and raw dumps in ko_raw/, see recipes/sources/korean.yaml).",
            file=sys.stderr,
        )
        return 2
    os.environ["WMTP_DATA"] = str(given.data.resolve())
    shutil.rmtree(ROOT, ignore_errors=True)
    started = time.monotonic()

    say("1. Raw files to clean text, some of it held back")
    wmtp("data", "prepare", "--sources", "recipes/sources/korean.yaml", "--out", str(TEXT))
    train, held_out = files("train"), files("validation")

    say("2. A tokenizer")
    vocabulary = vocabulary_size()
    wmtp("tokenizer", "train", *sources(train), "--split", "all", "--vocab-size", str(vocabulary),
         "--sample-bytes", "40000000", "--out", str(TOKENIZER))  # fmt: skip
    wmtp("tokenizer", "describe", "--tokenizer", str(TOKENIZER), *sources(held_out),
         "--split", "all")  # fmt: skip
    say("   ... beside others on the same text")
    run("benchmarks/tokenizer.py", *map(str, train), "--vocab-size", str(vocabulary))

    say("3. Shards")
    wmtp("data", "prepare", *sources(train), "--split", "all", "--tokenizer", str(TOKENIZER),
         "--out", str(SHARDS))  # fmt: skip

    say("4. A model with four heads")
    os.environ["WMTP_SHARDS"] = str(SHARDS)
    short = multiplies_bf16()
    steps = given.steps or (None if short else STEPS_WITHOUT_BF16)
    chosen = ["--set", "devices.mixed_precision=bf16"] if short else []
    chosen += [] if steps is None else ["--set", f"train.max_steps={steps}"]
    wmtp("train", "--config", "configs/local.yaml", "--recipe", "recipes/korean_small.yaml",
         "--run-name", RUN.name, "--set", f"paths.checkpoints.base_path={ROOT}",
         *chosen)  # fmt: skip
    model = RUN / "final"

    say("5. Documents that were held back")
    measured = ROOT / "evaluation"
    wmtp("evaluate", "--model", str(model), "--data", *[str(path) for path in held_out],
         "--split", "all", "--max-length", "512", "--out", str(measured))  # fmt: skip
    figures = json.loads((measured / "evaluation.json").read_text())
    passed = compare(figures, texts(train), texts(held_out))

    say("6. What it writes, with its heads and without")
    for prompt in PROMPTS:
        writing = ["generate", "--model", str(model), "--prompt", prompt, "--max-new-tokens", "80"]
        if wmtp_says(*writing, "--speculative", "3") != wmtp_says(*writing, "--speculative", "off"):
            print("error: drafts changed the text", file=sys.stderr)
            return 1
        wmtp(*writing, "--temperature", "0.8", "--seed", "1", "--repetition-penalty", "1.1")

    say("7. GGUF, for llama.cpp")
    exported = ROOT / "small.gguf"
    wmtp("export", "--model", str(model), "--to", "gguf", "--out", str(exported))
    try:
        find_engine()
    except ConfigError as error:
        print(f"What it answers there is not checked: {error}")
    else:
        prompts = ROOT / "prompts.txt"
        prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
        wmtp("verify-export", "--model", str(model), "--export", str(exported),
             "--prompts", str(prompts))  # fmt: skip
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes in all")
    return 0 if passed else 1


def files(part: str) -> list[Path]:
    return sorted(TEXT.glob(f"{part}-*.jsonl*"))


def sources(paths: list[Path]) -> list[str]:
    return [word for path in paths for word in ("--source", str(path))]


def vocabulary_size() -> int:
    """What the recipe's model is for."""
    import yaml

    recipe = yaml.safe_load(Path("recipes/korean_small.yaml").read_text())
    return int(recipe["model"]["vocab_size"])


def texts(paths: list[Path]) -> bytes:
    """The held-out documents as one file, a line between two."""
    found = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found += [json.loads(line)["text"] for line in lines]
    return "\n".join(found).encode()


def ppmd_bytes(content: bytes, order: int, before: bytes = b"") -> int:
    """Bytes that PPMd takes, once it has read ``before``."""
    encoder = pyppmd.Ppmd7Encoder(order, 1 << 30)
    encoder.encode(before)
    return len(encoder.encode(content)) + len(encoder.flush())


def compare(measured: dict[str, dict[str, float]], before: bytes, content: bytes) -> bool:
    """Bits per byte of the model and of compressors; whether the marks are reached.

    The compressors get the texts as one file. Line ends between them, which the model does not
    read, count as bytes: that favours the compressors by 0.2 %.
    """
    ours = measured["perplexity"]["bits_per_byte"]
    sizes = {
        "gzip -9": len(gzip.compress(content, 9)),
        "bzip2 -9": len(bz2.compress(content, 9)),
        "xz -9e": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
        "PPMd": min(ppmd_bytes(content, order) for order in (4, 5, 6, 8)),
        "PPMd, has read all of the training text": ppmd_bytes(content, 6, before),
    }
    found = {name: 8 * size / len(content) for name, size in sizes.items()}
    print(f"\n  bits per byte on {len(content):,} bytes that were held back")
    for name, value in {**found, "this model": ours}.items():
        print(f"  {name:40} {value:6.3f}")
    reached = ours <= GATE and ours <= (1 - LEAD) * found["PPMd"]
    print(
        f"  marks: at most {GATE}, and {LEAD:.0%} below PPMd ({(1 - LEAD) * found['PPMd']:.3f}): "
        f"{'reached' if reached else 'missed'}"
    )
    return reached


def run(script: str, *arguments: str) -> None:
    print(f"$ python {script} " + shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, script, *arguments], check=True)


def wmtp_says(*arguments: str) -> str:
    done = subprocess.run(command(*arguments), check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
