"""Prepares one corpus again and again in processes that are killed, until one comes to its end.

Called with a file of JSON: settings, out, workers, unit_bytes, and how to kill: ``seconds`` (at a
random moment, the last before so many, so often as ``kills`` says) or ``calls`` (in place of the
n-th call that renames something, for each n in turn). Prints how many were killed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from wmtp.corpus.pipeline import plan, prepare
from wmtp.corpus.settings import load_corpus_settings
from wmtp.runtime.console import Console


def kill_in_place_of(number: int) -> None:
    real, made = os.replace, 0

    def replace(*arguments: Any, **more: Any) -> None:
        nonlocal made
        made += 1
        if made == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments, **more)

    os.replace = replace
    os.rename = replace


def work(spec: dict[str, Any], call: int | None) -> None:
    with open(os.devnull, "w") as nowhere:
        if call is not None:
            kill_in_place_of(call)
        settings = load_corpus_settings(Path(spec["settings"]))
        prepare.prepare_corpus(
            settings, Path(spec["out"]), spec["workers"], Console(stream=nowhere)
        )


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    plan.SMALLEST_UNIT_BYTES = spec["unit_bytes"]
    generator = random.Random(spec["seed"])
    for attempt in range(1000):  # all before this one were killed
        calls = "calls" in spec and attempt < spec["calls"]
        child = os.fork()
        if child == 0:
            # the first call of each attempt is another one: what was done is not done again
            work(spec, attempt % 5 + 1 if calls else None)
            os._exit(0)
        if "seconds" in spec and attempt < spec["kills"]:
            # sooner at first: an idle machine is done in half a second
            time.sleep(generator.uniform(0.01, spec["seconds"] * (attempt + 1) / spec["kills"]))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit(f"attempt {attempt} failed")
            print(attempt)
            return
    sys.exit("never done")


if __name__ == "__main__":
    main()
