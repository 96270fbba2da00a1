"""How time, memory and disk of the search for duplicates grow with the number of documents.

    python benchmarks/corpus_search.py [--millions 1,4] [--workers 2]

Signatures are drawn at random, so that no text is needed for them: in ten documents one shares the
bands and most of the sketch of an earlier one, and must be compared with it. Each number of
documents has a process of its own; memory is the peak of resident memory as the system counts it,
mapped files included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from wmtp.corpus.duplicates import (
    DuplicateSettings,
    Signatures,
    SignatureShape,
    SplitSettings,
    find_duplicates,
    in_validation,
)
from wmtp.runtime.pool import pool

UNIT = 20_000
SHAPE = SignatureShape()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--millions", default="1,4")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--units", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.units:
        search(options.units, options.workers)
        return
    print("| documents | processor s | wall s | peak MB by process | scratch, bytes/document |")
    print("|---|---|---|---|---|")
    for millions in options.millions.split(","):
        with tempfile.TemporaryDirectory() as place:
            count = round(float(millions) * 1e6)
            write_units(Path(place) / "units", count)
            print(measured(Path(place), count, options.workers), flush=True)


def write_units(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    bands = np.zeros((SHAPE.bands, 0), np.uint64)
    sketch = np.zeros((0, SHAPE.permutations), np.uint8)
    for first in range(0, count, UNIT):
        size = min(UNIT, count - first)
        exact = rng.integers(0, 2**63, (size, 2), np.int64).astype(np.uint64)
        before = bands, sketch
        bands = rng.integers(0, 2**63, (SHAPE.bands, size), np.int64).astype(np.uint64)
        sketch = rng.integers(0, 255, (size, SHAPE.permutations), np.uint8)
        if first:  # documents of the unit before, a few bytes of their sketches changed
            bands[:, : size // 10] = before[0][:, -(size // 10) :]
            sketch[: size // 10, 20:] = before[1][-(size // 10) :, 20:]
        unit = folder / f"{first:09d}"
        unit.mkdir(parents=True)
        Signatures(exact, bands, sketch).write(unit)


def search(folder: Path, workers: int) -> None:
    units = sorted(folder.iterdir())
    with pool(workers, None) as run:
        found = find_duplicates(units, text_of, folder.parent / "scratch", DuplicateSettings(), run)
        in_validation(found, units, SplitSettings(), run)


def text_of(number: int) -> str:
    """A text like no other: what agrees in its signature is compared, and stays."""
    return f"{number * 7919:x}{number * 104_729:x}" * 20


def measured(place: Path, count: int, workers: int) -> str:
    command = [sys.executable, __file__, "--workers", str(workers), "--units", place / "units"]
    peaks: dict[int, int] = {}
    disk, begun = 0, time.monotonic()
    with subprocess.Popen(command) as process:
        family = psutil.Process(process.pid)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            try:
                for each in [family, *family.children(recursive=True)]:
                    peaks[each.pid] = max(peaks.get(each.pid, 0), each.memory_info().rss)
                files = (place / "scratch").rglob("*")
                disk = max(disk, sum(path.stat().st_size for path in files if path.is_file()))
            except (psutil.NoSuchProcess, FileNotFoundError):
                continue
            time.sleep(0.1)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("the search failed")
    shutil.rmtree(place / "units")
    seconds = usage.ru_utime + usage.ru_stime
    told = ", ".join(f"{peak / 1e6:.0f}" for peak in peaks.values())
    return (
        f"| {count:,} | {seconds:.0f} | {time.monotonic() - begun:.0f} | {told} "
        f"| {disk / count:.0f} |"
    )


if __name__ == "__main__":
    main()
