"""How fast one core takes Korean documents from JSON to clean text without duplicates.

    WMTP_DATA=folder python benchmarks/corpus.py [--rounds 3] [--files nsmc_reviews,msdocs_ht]

The folder holds ``ko/NAME.jsonl.xz``, and ``ko_raw/klue-*.json`` as evaluation files that
documents are held against. Processor time of one process, the least of so many rounds; MB are
those of the texts in UTF-8. Unpacking and reading the files is not counted: that is the readers'.
"""

import argparse
import json
import lzma
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from wmtp.corpus.document import Document, Dropped, Place
from wmtp.corpus.duplicates import (
    DuplicateSettings,
    SplitSettings,
    StoredTexts,
    comparable,
    find_duplicates,
    in_validation,
    sign,
    write_texts,
)
from wmtp.corpus.stages import CountingStage, EvaluationNgrams, default_stages

UNIT = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", default="nsmc_reviews,msdocs_ht")
    options = parser.parse_args()
    data = Path(os.environ.get("WMTP_DATA") or sys.exit("WMTP_DATA names no folder"))
    stages = default_stages(evaluation_of(data / "ko_raw"))
    print("| | documents | MB | " + " | ".join(s.name for s in stages) + " | all stages |")
    print("|---" * (len(stages) + 4) + "|")
    corpora = {name: read(data / "ko" / f"{name}.jsonl.xz") for name in options.files.split(",")}
    for name, lines in corpora.items():
        print(stage_speeds(name, lines, stages, options.rounds), flush=True)
    everything = [line for lines in corpora.values() for line in lines]
    print("\n| all together | MB/s | share of time |\n|---|---|---|")
    rounds = [whole_way(everything, stages) for _ in range(options.rounds)]
    seconds, size, outcome = min(rounds, key=lambda found: sum(found[0].values()))
    total = sum(seconds.values())
    for step, taken in seconds.items():
        print(f"| {step} | {size / taken:.1f} | {taken / total:.0%} |")
    print(f"| **all** | **{size / total:.2f}** | |\n")
    print(", ".join(f"{count} {what}" for what, count in sorted(outcome.items())))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform == "linux" else 1024**2
    )
    print(f"\nPeak memory {peak:.0f} MB, with {size:.0f} MB of lines held in it.")


def read(path: Path) -> list[bytes]:
    with lzma.open(path) as file:
        return file.read().splitlines()


def evaluation_of(folder: Path) -> EvaluationNgrams:
    def texts(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for each in value.values():
                yield from texts(each)
        elif isinstance(value, list):
            for each in value:
                yield from texts(each)

    files = sorted(folder.glob("klue-*.json"))
    return EvaluationNgrams.of({file.name: texts(json.loads(file.read_bytes())) for file in files})


def documents_of(lines: list[bytes], start: int = 0) -> list[Document]:
    return [
        Document(str(i), json.loads(line)["text"], "benchmark", "", Place("lines", i))
        for i, line in enumerate(lines, start)
    ]


def least_time(rounds: int, work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def stage_speeds(
    name: str, lines: list[bytes], stages: tuple[CountingStage, ...], rounds: int
) -> str:
    """A row: MB per second of each stage, on what the stages before it kept."""
    documents = documents_of(lines)
    count, size = len(documents), megabytes(documents)
    cells, total = [], 0.0
    for stage in stages:
        given, handled = documents, megabytes(documents)
        taken = least_time(rounds, lambda s=stage, d=given: [s.counted(each) for each in d])
        total += taken
        cells.append(f"{handled / taken:.0f}")
        outcomes = (stage(each) for each in given)
        documents = [each for each in outcomes if isinstance(each, Document)]
    return f"| {name} | {count} | {size:.1f} | {' | '.join(cells)} | {size / total:.1f} |"


def megabytes(documents: list[Document]) -> float:
    return sum(len(each.text.encode()) for each in documents) / 1e6


def whole_way(
    lines: list[bytes], stages: tuple[CountingStage, ...]
) -> tuple[dict[str, float], float, Counter[str]]:
    """Seconds of each step, MB of text, and how many documents went which way."""
    names = ("JSON to documents", "stages", "signatures", "on disk", "duplicates", "split")
    seconds = dict.fromkeys(names, 0.0)
    outcome: Counter[str] = Counter()
    settings = DuplicateSettings()
    size = 0.0

    def timed(step: str, started: float) -> float:
        now = time.process_time()
        seconds[step] += now - started
        return now

    with tempfile.TemporaryDirectory() as place:
        units = []
        for start in range(0, len(lines), UNIT):
            clock = time.process_time()
            documents = documents_of(lines[start : start + UNIT], start)
            clock = timed("JSON to documents", clock)
            kept = [text for each in documents if (text := through(each, stages, outcome))]
            clock = timed("stages", clock)
            texts = [comparable(text) for text in kept]
            signatures = sign(texts, settings.shape)
            clock = timed("signatures", clock)
            unit = Path(place) / f"{start:08d}"
            unit.mkdir()
            signatures.write(unit)
            write_texts(unit, texts)
            units.append(unit)
            timed("on disk", clock)
            size += megabytes(documents)
        clock = time.process_time()
        found = find_duplicates(units, StoredTexts(units), Path(place) / "scratch", settings)
        clock = timed("duplicates", clock)
        chosen = in_validation(found, units, SplitSettings())
        timed("split", clock)
    outcome.update(found.reason(i) or "kept" for i in range(len(found.percent)))
    outcome["for validation"] = int(chosen[found.kept].sum())
    return seconds, size, outcome


def through(
    document: Document, stages: tuple[CountingStage, ...], outcome: Counter[str]
) -> str | None:
    for stage in stages:
        given = stage.counted(document)[0]
        if isinstance(given, Dropped):
            outcome[given.reason] += 1
            return None
        document = given
    return document.text


if __name__ == "__main__":
    main()
