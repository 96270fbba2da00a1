"""Raw files of gigabytes to clean text: time, memory, disk, and the same bytes after kills.

    WMTP_DATA=folder python benchmarks/corpus_pipeline.py [--gigabytes 1] [--workers 1,2]
        [--kills 4]

A corpus of so many gigabytes (JSONL, and JSON of the Modu corpora) is made of the sentences and
words of ``ko/*.jsonl.xz``, shuffled and recombined by a seed, with exact and near copies planted
among them. ``wmtp data prepare`` then works on it with each number of workers, and once more with
the last of them, killed at random moments; all must give the same bytes. Memory of every process is
looked at ten times a second.
"""

import argparse
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import psutil
import yaml

KEPT_TO_COPY = 5_000
SHORT, EXACT, NEAR, PRIVATE = 0.10, 0.02, 0.03, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="of the raw files, which stay there; made if absent")
    options = parser.parse_args()
    data = Path(os.environ.get("WMTP_DATA") or sys.exit("WMTP_DATA names no folder"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        sources = folder / "sources.yaml"
        if not sources.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_corpus(data / "ko", folder, round(options.gigabytes * 1e9), options.seed)
        print((folder / "planted.json").read_text(), flush=True)
        found = {}
        for workers in map(int, options.workers.split(",")):
            out = Path(temporary) / f"out-{workers}"
            run = prepare(sources, out, workers)
            print(run.told(f"{workers} workers"), (out / "report.md").read_text().split("```")[1])
            print((out / "speeds.json").read_text(), flush=True)
            found[f"{workers} workers"] = hashes(out)
            shutil.rmtree(out)
        if options.kills:
            out = Path(temporary) / "out-killed"
            rng = random.Random(time.time())
            for _ in range(options.kills):
                moment = rng.uniform(0.02, 0.6) * run.wall_seconds
                killed = prepare(sources, out, workers, end_after=moment)
                print(f"killed after {killed.wall_seconds:.0f} s", flush=True)
            print(prepare(sources, out, workers).told("the rest"))
            found["killed"] = hashes(out)
    for name, files in found.items():
        print(f"{name}: {sha256(json.dumps(files).encode()).hexdigest()}")
    same = all(each == found["killed" if options.kills else f"{workers} workers"]
               for each in found.values())  # fmt: skip
    print(f"{' and '.join(found)}: {'the same bytes' if same else 'DIFFERENT BYTES'}")
    if not same:
        sys.exit(1)


# the corpus ---------------------------------------------------------------------------------------


def write_corpus(texts: Path, folder: Path, size: int, seed: int) -> None:
    """Two raw files of together so many bytes, the list of sources, and what was planted."""
    planted: Counter[str] = Counter()
    documents = made_documents(texts, random.Random(seed), planted)
    with (folder / "web.jsonl").open("wb") as file:
        written = 0
        while written < 0.7 * size:
            line = json.dumps({"text": next(documents)}, ensure_ascii=False).encode() + b"\n"
            written += file.write(line)
    with (folder / "nikl.json").open("wb") as file:
        written, number = file.write(b'{"id": "N", "document": ['), 0
        while written < 0.3 * size:
            forms = [{"form": part} for part in next(documents).split("\n")]
            record = {"id": f"N.{number}", "metadata": {"title": "글"}, "paragraph": forms}
            written += file.write(
                b",\n" * bool(number) + json.dumps(record, ensure_ascii=False).encode()
            )
            number += 1
        file.write(b"]}")
    (folder / "planted.json").write_text(json.dumps(dict(planted)))
    sources = [
        {"name": "web", "paths": [f"{folder}/web.jsonl"], "format": "jsonl", "license": "made"},
        {"name": "nikl", "paths": [f"{folder}/nikl.json"], "format": "nikl", "license": "made"},
    ]
    # last, so that it is there only if all is
    (folder / "sources.yaml").write_text(yaml.safe_dump({"sources": sources}))


def made_documents(folder: Path, rng: random.Random, planted: Counter[str]) -> Iterator[str]:
    """Documents without end, counted by kind."""
    texts = []
    for path in sorted(folder.glob("*.jsonl.xz")):
        with lzma.open(path) as file:
            texts += [json.loads(line)["text"] for line in file]
    sentences = [part for text in texts for part in text.split("\n") if 20 <= len(part) <= 300]
    eojeols = [word for text in texts for word in text.split() if len(word) <= 20]
    recent: list[str] = []
    while True:
        kind = rng.random()
        if recent and kind < EXACT:
            planted["exact"] += 1
            yield rng.choice(recent)
            continue
        if recent and kind < EXACT + NEAR:
            planted["near"] += 1
            words = rng.choice(recent).split(" ")
            for _ in range(max(len(words) // 40, 1)):
                words[rng.randrange(len(words))] = rng.choice(eojeols)
            yield " ".join(words)
            continue
        is_short = kind > 1 - SHORT
        count = 1 if is_short else min(2 + int(rng.lognormvariate(2.3, 0.8)), 400)
        lines = []
        for _ in range(count):
            words = rng.choices(eojeols, k=rng.randint(6, 14))
            if rng.random() < 0.5:
                words = rng.choice(sentences).split(" ")
                words[rng.randrange(len(words))] = rng.choice(eojeols)
            lines.append(" ".join(words))
        if rng.random() < PRIVATE:
            planted["phones"] += 1
            lines.append(f"문의 010-{rng.randrange(2000, 9999)}-{rng.randrange(1000, 9999)}")
        planted["short" if is_short else "long"] += 1
        text = "\n".join(lines)
        if len(recent) < KEPT_TO_COPY:
            recent.append(text)
        else:
            recent[rng.randrange(KEPT_TO_COPY)] = text
        yield text


# the runs -----------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One run.

    Attributes:
        wall_seconds: that it took.
        cpu_seconds: of all its processes, if it came to its end.
        peaks: most bytes of resident memory of each process, the first the one that was started.
        together: most bytes of all processes at one moment.
        disk: most bytes of the folder that it writes.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peaks: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    together: int = 0
    disk: int = 0

    def told(self, name: str) -> str:
        """A line."""
        peaks = ", ".join(f"{peak / 1e6:.0f}" for peak in self.peaks.values())
        return (
            f"{name}: {self.wall_seconds:.0f} s, {self.cpu_seconds:.0f} CPU s; peak MB by process "
            f"{peaks}, together {self.together / 1e6:.0f}; disk {self.disk / 1e9:.2f} GB"
        )


def prepare(sources: Path, out: Path, workers: int, end_after: float | None = None) -> Measured:
    """Run the command, or kill it after so many seconds."""
    command = [sys.executable, "-m", "wmtp", "data", "prepare", "--sources", str(sources),
               "--out", str(out), "--workers", str(workers)]  # fmt: skip
    run, begun = Measured(), time.monotonic()
    log = out.with_suffix(".log")
    with log.open("w") as told, subprocess.Popen(command, stdout=told, stderr=told) as process:
        family = psutil.Process(process.pid)
        looked = 0.0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            run.wall_seconds = time.monotonic() - begun
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                run.cpu_seconds = usage.ru_utime + usage.ru_stime  # with its children's
                break
            if end_after is not None and run.wall_seconds > end_after:
                process.kill()
            run_memory(family, run)
            if run.wall_seconds > looked + 5:
                looked, run.disk = run.wall_seconds, max(run.disk, bytes_below(out))
            time.sleep(0.1)
    if process.returncode and end_after is None:
        sys.exit(log.read_text())
    return run


def run_memory(family: psutil.Process, run: Measured) -> None:
    now = 0
    try:
        for process in [family, *family.children(recursive=True)]:
            size = process.memory_info().rss
            run.peaks[process.pid] = max(run.peaks[process.pid], size)
            now += size
    except psutil.NoSuchProcess:
        pass
    run.together = max(run.together, now)


def bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:  # it was renamed meanwhile
                continue
    return total


def hashes(out: Path) -> dict[str, str]:
    """Of all that is to be the same."""
    return {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.name not in ("speeds.json", "plan.json", ".lock")
    }


if __name__ == "__main__":
    main()
