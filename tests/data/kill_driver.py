"""Makes shards again and again in processes that are killed, until one comes to its end.

Called with a file of JSON: sources (arguments of ``make_source``), tokenizer, out, workers,
block_bytes, seed, and how to kill: ``kills`` times at a random moment of ``seconds``, or, with
``calls``, in place of the n-th call that renames or removes a file, for each n in turn. Prints
how many were killed.
"""

import json
import random
import sys
from pathlib import Path

from tests.processes.kills import kill_in_place_of, run_until_done

from wmtp.data import prepare, text_files
from wmtp.data.sources import make_source
from wmtp.data.tokenizer import TextTokenizer


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    text_files.BLOCK_BYTES = prepare._BATCH_CHARS = spec["block_bytes"]
    prepare._SECONDS_BETWEEN_SAVES = 0.0
    sources = [make_source(*arguments) for arguments in spec["sources"]]
    tokenizer = TextTokenizer.load(spec["tokenizer"])
    generator = random.Random(spec["seed"])

    def work(attempt: int) -> None:
        if "calls" in spec:
            kill_in_place_of(attempt % spec["calls"] + 1, ("replace", "rename", "unlink"))
        prepare.prepare(sources, tokenizer, Path(spec["out"]), workers=spec["workers"])

    def seconds_until_kill(attempt: int) -> float | None:
        if "kills" in spec and attempt < spec["kills"]:
            return generator.uniform(0.0, spec["seconds"])
        return None

    print(run_until_done(work, seconds_until_kill))


if __name__ == "__main__":
    main()
