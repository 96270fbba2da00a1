"""Makes shards again and again in processes that are killed, until one comes to its end.

Called with a file of JSON: sources (arguments of ``make_source``), tokenizer, out, workers,
block_bytes, seed, and how to kill: ``kills`` times at a random moment of ``seconds``, or, with
``calls``, in place of the n-th call that renames or removes a file, for each n in turn. Prints
how many were killed.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmtp.data import prepare, text_files
from wmtp.data.sources import make_source
from wmtp.data.tokenizer import TextTokenizer

ATTEMPTS = 1000


def kill_in_place_of(number: int) -> None:
    made = 0

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal made
            made += 1
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    for name in ("replace", "rename", "unlink"):
        setattr(os, name, killing(getattr(os, name)))


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    text_files.BLOCK_BYTES = prepare._BATCH_CHARS = spec["block_bytes"]
    prepare._SECONDS_BETWEEN_SAVES = 0.0
    sources = [make_source(*arguments) for arguments in spec["sources"]]
    tokenizer = TextTokenizer.load(spec["tokenizer"])
    generator = random.Random(spec["seed"])
    for attempt in range(ATTEMPTS):  # all before this one were killed
        child = os.fork()
        if child == 0:
            if "calls" in spec:
                kill_in_place_of(attempt % spec["calls"] + 1)
            prepare.prepare(sources, tokenizer, Path(spec["out"]), workers=spec["workers"])
            os._exit(0)
        if "kills" in spec and attempt < spec["kills"]:
            time.sleep(generator.uniform(0.0, spec["seconds"]))
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
