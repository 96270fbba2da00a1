"""Prepares one corpus again and again in processes that are killed, until one comes to its end.

Called with a file of JSON: settings, out, workers, unit_bytes, and how to kill: ``seconds`` (at a
random moment, the last before so many, so often as ``kills`` says) or ``calls`` (in place of the
n-th call that renames something, for each n in turn). Prints how many were killed.
"""

import json
import os
import random
import sys
from pathlib import Path

from tests.processes.kills import kill_in_place_of, run_until_done
from wmtp.corpus.pipeline import plan, prepare
from wmtp.corpus.settings import load_corpus_settings
from wmtp.runtime.console import Console


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    plan.SMALLEST_UNIT_BYTES = spec["unit_bytes"]
    generator = random.Random(spec["seed"])

    def work(attempt: int) -> None:
        with open(os.devnull, "w") as nowhere:
            if "calls" in spec and attempt < spec["calls"]:
                # the first call of each attempt is another one: what was done is not done again
                kill_in_place_of(attempt % 5 + 1, ("replace", "rename"))
            settings = load_corpus_settings(Path(spec["settings"]))
            prepare.prepare_corpus(
                settings, Path(spec["out"]), spec["workers"], Console(stream=nowhere)
            )

    def seconds_until_kill(attempt: int) -> float | None:
        if "seconds" in spec and attempt < spec["kills"]:
            # sooner at first: an idle machine is done in half a second
            return generator.uniform(0.01, spec["seconds"] * (attempt + 1) / spec["kills"])
        return None

    print(run_until_done(work, seconds_until_kill))


if __name__ == "__main__":
    main()
