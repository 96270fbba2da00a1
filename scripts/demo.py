"""The demo behind ``make demo``: a real run of every main command, on data every machine has.

    python scripts/demo.py [--steps 200]

Trains a tokenizer and a small model with four heads on the sources of Python's standard library,
stops and resumes it once, trains it again with rho1 weights (the first model is the reference),
compares the two on files neither has seen, and lets the second write. Everything it runs is shown
and can be typed by hand.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

RUNS = Path("runs")
TOKENIZER = RUNS / "quickstart-tokenizer"
BASELINE, RHO1 = "demo-baseline", "demo-rho1"
TRAIN = ["train", "--config", "configs/local.yaml", "--recipe", "recipes/quickstart.yaml"]
PROMPT = "def read_lines(path):\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each model")
    steps = parser.parse_args().steps
    for old in (TOKENIZER, RUNS / BASELINE, RUNS / RHO1):
        shutil.rmtree(old, ignore_errors=True)
    length = ["--set", f"train.max_steps={steps}", "--set", f"train.eval_interval={steps // 2}"]

    say("1. A tokenizer, trained on the standard library's own sources")
    wmtp("tokenizer", "train", "--source", "python-stdlib", "--split", "train",
         "--vocab-size", "4096", "--out", str(TOKENIZER))  # fmt: skip

    say("2. A model with four heads, every target weighted the same; stopped on the way")
    first = [*TRAIN, "--run-name", BASELINE, *length]
    stop_after(RUNS / BASELINE / "metrics.jsonl", steps // 2, *first)
    say("   ... and resumed where it stopped")
    wmtp(*first, "--resume")

    say("3. The same recipe with rho1 weights; the first model is the reference")
    reference = str(RUNS / BASELINE / "final")
    weighted = ["--set", "weighting.algorithm=rho1-wmtp", "--set", f"paths.models.ref={reference}"]
    wmtp(*TRAIN, "--run-name", RHO1, *length, *weighted)

    say("4. Held-out files, side by side")
    compare({name: last_evaluation(RUNS / name) for name in (BASELINE, RHO1)})

    say("5. What the weighted model writes")
    wmtp("generate", "--model", str(RUNS / RHO1 / "final"), "--prompt", PROMPT,
         "--max-new-tokens", "60", "--temperature", "0.7", "--seed", "1")  # fmt: skip

    say("Where everything lies")
    for path, what in (
        (RUNS / RHO1 / "final", "a Hugging Face directory: trunk, heads, tokenizer"),
        (RUNS / RHO1 / "metrics.jsonl", "one line per logged step"),
        (RUNS / RHO1 / "run.yaml", "the settings in effect"),
        (RUNS / "mlflow.db", f"mlflow ui --backend-store-uri sqlite:///{RUNS}/mlflow.db"),
    ):
        print(f"  {path!s:34} {what}")
    print("\nNext: change recipes/quickstart.yaml, or start from a pretrained model:")
    print("  export WMTP_BASE=MODEL_DIR WMTP_MBPP=mbpp.jsonl")
    print("  wmtp train --config configs/local.yaml --recipe recipes/mtp_baseline.yaml --dry-run")


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def command(*arguments: str) -> list[str]:
    print("$ wmtp " + shlex.join(arguments), flush=True)
    return [sys.executable, "-m", "wmtp", *arguments]


def wmtp(*arguments: str) -> None:
    subprocess.run(command(*arguments), check=True)


def stop_after(metrics: Path, step: int, *arguments: str) -> None:
    """Run a training and press Ctrl-C, so to speak, once that step is logged."""
    process = subprocess.Popen(command(*arguments))
    while process.poll() is None and last_step(metrics) < step:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code = process.wait()
    if code not in (0, 130):
        raise SystemExit(code)


def rows(metrics: Path) -> list[dict[str, float]]:
    text = metrics.read_text() if metrics.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def last_step(metrics: Path) -> float:
    return max((row["step"] for row in rows(metrics)), default=0)


def last_evaluation(run: Path) -> dict[str, float]:
    return [row for row in rows(run / "metrics.jsonl") if "eval/loss" in row][-1]


def compare(figures: dict[str, dict[str, float]]) -> None:
    """One line per head: held-out cross-entropy in nats and share of right first guesses."""
    names = list(figures)
    print(f"  {'':10}" + "".join(f"{name:>28}" for name in names))
    horizon = sum(key.startswith("eval/ce/") for key in figures[names[0]])
    for head in range(horizon):
        cells = [
            f"ce {figures[name][f'eval/ce/head_{head}']:.4f}   "
            f"right {figures[name][f'eval/accuracy/head_{head}']:6.1%}"
            for name in names
        ]
        print(f"  head {head:<5}" + "".join(f"{cell:>28}" for cell in cells))


if __name__ == "__main__":
    main()
