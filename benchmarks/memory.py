"""Compare the predicted peak memory of runs with the measured one.

    python benchmarks/memory.py                      # every configuration, some ten minutes
    python benchmarks/memory.py --only gpt2          # those with this in their name
    python benchmarks/memory.py --markdown FILE      # for a result worth keeping

Each configuration is trained for two steps of two micro-batches, by the code of a real run and in
a process of its own, whose resident set is read before the model is built and at its highest point
(Linux). Before the first reading the process has imported everything and trained a toy, so that
the program itself is not counted: only what the run adds.

It is measured twice, unless ``--once``: as a run that is short of memory, which gives freed
memory back at once, and as one with memory to spare, where glibc keeps freed pieces under 32 MiB in
an order that nothing can foresee. The prediction is of the first, what tensors hold; ``kept by
glibc`` is what the second adds, and ``slower`` what giving back costs in processor time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

SMALL: dict[str, Any] = {
    "hidden_size": 384,
    "num_layers": 6,
    "num_heads": 6,
    "num_kv_heads": 2,
    "vocab_size": 8192,
    "heads": {"horizon": 4},
}
GPT2: dict[str, Any] = {
    "kind": "hf",
    "architecture": "gpt2",
    "hidden_size": 384,
    "num_layers": 6,
    "num_heads": 6,
    "vocab_size": 8192,
    "heads": {"horizon": 4, "kind": "linear"},
}
TOY: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "heads": {"horizon": 2},
}


def recipe(model: dict[str, Any], batch: int, length: int, **changes: Any) -> dict[str, Any]:
    return {
        "model": model,
        "data": {"train": {"batch_size": batch, "max_length": length}},
        "train": {"max_steps": 2, "gradient_accumulation": 2, **changes.pop("train", {})},
        "weighting": {"algorithm": "baseline-mtp"},
        **changes,
    }


def heads(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**model, "heads": {**model["heads"], **changes}}


RECOMPUTE = {"train": {"gradient_checkpointing": True}}
CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "llama, sequential heads": (recipe(SMALL, 4, 512), "fp32"),
    "llama, sequential heads, checkpointing": (recipe(SMALL, 4, 512, **RECOMPUTE), "fp32"),
    "llama, sequential heads, one row": (recipe(SMALL, 1, 1024), "fp32"),
    "llama, parallel heads": (recipe(heads(SMALL, kind="parallel"), 4, 512), "fp32"),
    "llama, linear heads, bf16": (recipe(heads(SMALL, kind="linear"), 8, 512), "bf16"),
    "llama, frozen trunk": (recipe(SMALL, 4, 512, train={"freeze": "trunk"}), "fp32"),
    "llama, Muon": (recipe(SMALL, 2, 512, optim={"name": "muon"}), "fp32"),
    "gpt2, linear heads": (recipe(GPT2, 4, 512), "fp32"),
    "gpt2, linear heads, checkpointing": (recipe(GPT2, 4, 512, **RECOMPUTE), "fp32"),
    "gpt2, sequential heads": (recipe(heads(GPT2, kind="sequential"), 2, 1024), "fp32"),
}


def prepare(folder: Path) -> None:
    """A text and a tokenizer for all of them."""
    from wmtp.cli import app

    text = "\n".join(f"def f_{i}(a, b):\n    return a * {i} + b - {i % 7}" for i in range(9000))
    (folder / "text.txt").write_text(text)
    app(
        ["tokenizer", "train", "--source", str(folder / "text.txt"), "--vocab-size", "400",
         "--out", str(folder / "tokenizer")],
        standalone_mode=False,
    )  # fmt: skip


def read_settings(folder: Path, values: dict[str, Any], precision: str) -> Any:
    from wmtp.config_check import load_settings

    data = values["data"]["train"] | {"sources": [str(folder / "text.txt")]}
    filled = values | {"data": {"tokenizer": str(folder / "tokenizer"), "train": data}}
    config = {
        "devices": {"compute_backend": "cpu", "mixed_precision": precision},
        "paths": {"checkpoints": {"base_path": str(folder / "runs")}},
    }
    paths = folder / "config.yaml", folder / "recipe.yaml"
    for path, written in zip(paths, (config, filled), strict=True):
        path.write_text(yaml.safe_dump(written))
    return load_settings(str(paths[0]), str(paths[1]))


def train(settings: Any) -> None:
    from wmtp.job import assembled
    from wmtp.step import Feed, set_in_motion, take_step

    with assembled(settings, lambda _: None) as job:
        moving = set_in_motion(job)
        job.model.train()
        with Feed(job, moving.progress) as feed:
            for _ in range(job.max_steps):
                take_step(job, moving, feed)


def measure(folder: Path, name: str, *, give_back: bool) -> tuple[int, float]:
    """Growth of the resident set in bytes, in this process, and processor seconds of the run.

    Args:
        folder: that was prepared.
        name: of the configuration.
        give_back: freed memory is given back at once, as when the machine's is short.
    """
    import gc
    import time

    from wmtp.runtime.device import choose_device
    from wmtp.runtime.heap import give_freed_memory_back

    if give_back:
        give_freed_memory_back()
    values, precision = CONFIGURATIONS[name]
    toy = GPT2 | {"hidden_size": 32, "num_layers": 1, "num_heads": 2}
    small = heads(toy if values["model"].get("kind") == "hf" else TOY, kind="sequential")
    train(read_settings(folder, values | {"model": small}, precision))
    gc.collect()
    settings = read_settings(folder, values, precision)
    device = choose_device("cpu", "fp32")
    device.reset_peak_memory()
    before, started = device.peak_memory_bytes(), time.process_time()
    train(settings)
    return device.peak_memory_bytes() - before, time.process_time() - started


def predict(folder: Path, name: str) -> dict[str, int]:
    """Predicted bytes by part."""
    from wmtp.memory_plan import predict as predict_run

    return dict(predict_run(read_settings(folder, *CONFIGURATIONS[name]), "cpu").parts)


def in_a_fresh_process(folder: Path, name: str, *, give_back: bool) -> tuple[int, float]:
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command += ["--give-back"] * give_back
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    held, seconds = json.loads(done.stdout.splitlines()[-1])
    return int(held), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", nargs="+", help="parts of names")
    parser.add_argument("--once", action="store_true", help="leave out glibc's default")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--give-back", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.folder, given.one, give_back=given.give_back)))
        return
    from wmtp.audit import PARTS
    from wmtp.memory_plan import mebibytes

    lines = [
        f"| configuration | B | S | {' | '.join(PARTS)} | predicted MiB | measured MiB | error "
        "| kept by glibc | slower |",
        f"|---|{'---:|' * (len(PARTS) + 7)}",
    ]
    print("\n".join(lines), flush=True)
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        for name in CONFIGURATIONS:
            if given.only and not any(part in name for part in given.only):
                continue
            parts = predict(folder, name)
            predicted = sum(parts.values())
            measured, seconds = in_a_fresh_process(folder, name, give_back=True)
            kept, slower = "", ""
            if not given.once:
                most, fewer = in_a_fresh_process(folder, name, give_back=False)
                kept, slower = mebibytes(most - measured), f"{seconds / fewer - 1:+.0%}"
            error = predicted / measured - 1
            worst = max(worst, abs(error))
            size = CONFIGURATIONS[name][0]["data"]["train"]
            cells = [name, str(size["batch_size"]), str(size["max_length"])]
            cells += [f"{held / 2**20:,.0f}" for held in parts.values()]
            cells += [f"{predicted / 2**20:,.0f}", f"{measured / 2**20:,.0f}", f"{error:+.1%}"]
            cells += [kept, slower]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    print(f"largest error {worst:.1%}")
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
