"""Raw files to clean text: what ``wmtp data prepare --sources`` does, in order."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Final, TypeVar, final

import numpy as np
import orjson

from wmtp.corpus.document import Document, Place
from wmtp.corpus.duplicates import DuplicateSettings, SignatureShape, SplitSettings
from wmtp.corpus.pipeline.build import (
    build_reader,
    build_stages,
    check_extra,
    evaluation_ngrams,
    origin_of,
)
from wmtp.corpus.pipeline.plan import Plan, differences, make_plan, read_plan
from wmtp.corpus.pipeline.report import CorpusReport, SourceReport, speeds
from wmtp.corpus.pipeline.selection import Selection, select
from wmtp.corpus.pipeline.tally import SAMPLES
from wmtp.corpus.pipeline.units import (
    WORK_FOLDER,
    DoneUnit,
    Position,
    Unit,
    UnitWorker,
    cut_units,
    document_lines,
    read_unit,
    sample_of,
    text_sizes,
    unit_name,
)
from wmtp.corpus.pipeline.writing import SIDES, FileTask, WrittenFile, file_tasks, write_file
from wmtp.corpus.readers.reader import RawFile
from wmtp.corpus.settings import CorpusSettings
from wmtp.corpus.stages import PrivateData
from wmtp.errors import DataError
from wmtp.runtime.console import Console
from wmtp.runtime.durable import replace_file, storage_errors
from wmtp.runtime.machine import peak_resident_bytes
from wmtp.runtime.output_folder import hold_output_folder, refuse_other_beginning
from wmtp.runtime.pool import Run, pool

REPORT_FILE: Final = "report.json"
SUMMARY_FILE: Final = "report.md"
SPEEDS_FILE: Final = "speeds.json"
PLAN_FILE: Final = "plan.json"
_LOCK_FILE: Final = ".lock"

T = TypeVar("T")
R = TypeVar("R")


def prepare_corpus(
    settings: CorpusSettings, out: Path, workers: int, console: Console
) -> list[str]:
    """Make a corpus, or go on with one that was begun.

    What is written depends on the settings and on the content of the files alone: not on the
    number of workers, nor on how often it was stopped. A folder that was begun with other
    settings, files or versions is refused.

    Args:
        settings: checked.
        out: the folder.
        workers: processes.
        console: shows how far it has come.

    Returns:
        What became of it, for a person.

    Raises:
        ConfigError: the folder is being written, or was begun with something else.
        DataError: a file cannot be read, or a source is mostly bad or empty.
        StorageError: something could not be written; running again goes on there.
    """
    check_extra()
    with _folder_of_ours(out):
        begun = time.monotonic()
        before, plan = _settle_plan(settings, out)
        work = out / WORK_FOLDER
        if (out / REPORT_FILE).is_file():
            if work.is_dir():  # it was ended between its last two acts
                with storage_errors(f"{work} could not be removed"):
                    shutil.rmtree(work)
            return [f"{out} is complete: nothing to do", *_summary(out)]
        tool = UnitWorker(
            out=out,
            readers=tuple(map(build_reader, settings.sources)),
            origins=tuple(map(origin_of, settings.sources)),
            stages=build_stages(settings, evaluation_ngrams(settings)),
            shape=SignatureShape(),
        )
        with storage_errors(f"{work} could not be written"):
            if before is None:  # all that can be refused before has been
                replace_file(out / PLAN_FILE, plan.dumps().encode())
            tool.folder.mkdir(parents=True, exist_ok=True)
            for left in tool.folder.glob(".tmp-*"):
                shutil.rmtree(left)
            for left in out.glob(".tmp-*"):
                left.unlink()
        with pool(workers, tool) as run:
            seconds = {"cut": _do_units(plan, tool, run, console), "search": 0.0, "files": 0.0}
            units = _units_in_order(plan, tool.folder)
            try:
                sources = _add_up(settings, plan, units)
            except DataError:  # nobody can go on with this plan
                (out / PLAN_FILE).unlink()
                shutil.rmtree(work)
                raise
            searched = time.process_time()
            console.line(f"looking for duplicates among {_count(units):,} documents")
            searching, writing = _Measured(run), _Measured(run)
            selection = select(
                [unit.folder for unit in units],
                work / "selection",
                DuplicateSettings(
                    threshold=settings.duplicates.threshold,
                    group_threshold=settings.duplicates.group_threshold,
                ),
                SplitSettings(
                    settings.validation.share, settings.seed, settings.validation.largest_group
                ),
                searching,
            )
            seconds["search"] = time.process_time() - searched
            if workers > 1:  # else it is this process's already
                seconds["search"] += searching.seconds
            _count_selection(plan, units, selection, sources, tool.private)
            tasks = _tasks(units, selection, settings.file_megabytes * 1_000_000)
            files = list(writing(_write, tasks))
            seconds["files"] = writing.seconds
        report = CorpusReport(
            plan,
            sources,
            tuple(sorted(files, key=lambda file: (SIDES.index(file.side), file.name))),
        )
        for source in sources:
            source.check()
        for unit in units:
            for name, value in unit.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
        told = speeds(
            seconds,
            sum(source.tally.bytes_in for source in sources),
            time.monotonic() - begun,
            {
                "this process": peak_resident_bytes(),
                "largest worker": max(
                    *(unit.peak_bytes for unit in units), searching.peak_bytes, writing.peak_bytes
                ),
            },
        )
        with storage_errors(f"{out} could not be written"):
            replace_file(out / SPEEDS_FILE, (json.dumps(told, indent=1) + "\n").encode())
            replace_file(out / SUMMARY_FILE, report.markdown().encode())
            content = json.dumps(report.as_json(), ensure_ascii=False, indent=1) + "\n"
            replace_file(out / REPORT_FILE, content.encode())
            shutil.rmtree(work)
    return [str(out), *report.lines(), _speed_line(told)]


@contextmanager
def _folder_of_ours(out: Path) -> Iterator[None]:
    """Hold the folder, made if it is not there.

    Raises:
        DataError: it holds something else.
        ConfigError: another process writes it.
    """
    is_used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_used and not (out / PLAN_FILE).is_file() and not (out / _LOCK_FILE).is_file():
        raise DataError(
            f"'{out}' exists already, and no corpus was begun in it. Delete it, or name another "
            "folder."
        )
    with storage_errors(f"{out} could not be written"):
        out.mkdir(parents=True, exist_ok=True)
    with hold_output_folder(out / _LOCK_FILE, out):
        yield


def _settle_plan(settings: CorpusSettings, out: Path) -> tuple[Plan | None, Plan]:
    """What was begun here, if anything was; and the plan, which is the same if so.

    Raises:
        ConfigError: something else was.
    """
    path = out / PLAN_FILE
    before = read_plan(path) if path.is_file() else None
    plan = make_plan(settings, before)
    if before is None:
        return None, plan
    refuse_other_beginning(out, differences(before, plan))
    return before, replace(plan, unit_bytes=before.unit_bytes)


def _do_units(plan: Plan, tool: UnitWorker, run: Run, console: Console) -> float:
    """Do what is not done yet, all files in order; gives the seconds of cutting them."""
    done: dict[Position, DoneUnit] = {}
    for folder in tool.folder.iterdir():
        unit = read_unit(folder)
        done[unit.file, unit.first] = unit
    before = [0, *accumulate(file.size for file in plan.inputs)]
    place = _Progress()

    def opened(file: int, raw: RawFile) -> None:
        place.before, place.file = before[file], raw

    def tasks() -> Iterator[Unit]:
        for source, group in groupby(enumerate(plan.inputs), key=lambda item: item[1].source):
            files = [(i, file.name, Path(file.path)) for i, file in group]
            units = cut_units(tool.readers[source], source, files, plan.unit_bytes, done, opened)
            while True:
                began = time.thread_time()
                unit = next(units, None)
                place.seconds += time.thread_time() - began
                if unit is None:
                    break
                yield unit

    total = before[-1] // 1_000_000 + 1
    with console.progress(0, total, "MB") as bar:
        for _ in run(UnitWorker.work, tasks()):
            bar.advance(place.bytes // 1_000_000)
        bar.update(total, {})
    return place.seconds


@dataclass
class _Progress:
    """What was read of all files before, the one that is being read, and the time that took."""

    before: int = 0
    file: RawFile | None = None
    seconds: float = 0.0

    @property
    def bytes(self) -> int:
        return self.before + (self.file.consumed if self.file else 0)


def _units_in_order(plan: Plan, folder: Path) -> list[DoneUnit]:
    """All units, each behind the one before it.

    Raises:
        RuntimeError: one is missing, which is a fault of ours.
    """
    units: list[DoneUnit] = []
    begin: Position = (0, 0)
    while begin[0] < len(plan.inputs):
        path = folder / unit_name(*begin)
        if not path.is_dir():
            raise RuntimeError(f"{path}: nobody did this unit of {plan.inputs[begin[0]].name}")
        units.append(read_unit(path))
        begin = units[-1].behind
    return units


def _add_up(
    settings: CorpusSettings, plan: Plan, units: list[DoneUnit]
) -> tuple[SourceReport, ...]:
    """The tally of each source, before duplicates.

    Raises:
        DataError: a source is mostly bad, or has no document.
    """
    sources = tuple(
        SourceReport(source.name, source.effective_license) for source in settings.sources
    )
    for unit in units:
        sources[plan.inputs[unit.file].source].tally.add(unit.tally())
    for i, source in enumerate(sources):
        tally = source.tally
        bad = ", ".join(f"{reason} {count}" for reason, count in tally.bad.most_common(3))
        first = next((s[0].place for r, s in tally.samples.items() if r.startswith("bad: ")), "")
        if 2 * tally.bad.total() > tally.records:
            raise DataError(
                f"source {source.name}: {tally.bad.total()} of {tally.records} records cannot be "
                f"read ({bad}; the first is {first}). Is its format right?"
            )
        if not tally.documents:
            name = next(file.name for file in plan.inputs if file.source == i)
            raise DataError(
                f"source {source.name} ({name}): none of its {tally.records} records is a document."
            )
    return sources


def _count(units: list[DoneUnit]) -> int:
    return sum(unit.documents for unit in units)


def _count_selection(
    plan: Plan,
    units: list[DoneUnit],
    selection: Selection,
    sources: tuple[SourceReport, ...],
    private: PrivateData | None,
) -> None:
    """Add to the sources' reports what is kept, and what goes as a duplicate."""
    firsts = np.cumsum([0, *(unit.documents for unit in units)])
    found = selection.duplicates
    for unit, first in zip(units, firsts[:-1].tolist(), strict=True):
        source = sources[plan.inputs[unit.file].source]
        sizes = np.asarray(text_sizes(unit.folder))
        for side in SIDES:
            kept = selection.kept(first, first + unit.documents, side == "validation")
            source.kept[side].documents += len(kept)
            source.kept[side].text_bytes += int(sizes[kept].sum())
        percents = np.asarray(found.percent[first : first + unit.documents])
        equal = percents == found.EQUAL
        for reason, chosen in (
            ("exact_duplicate", equal),
            ("near_duplicate", ~equal & (percents > 0)),
        ):
            numbers = np.flatnonzero(chosen)
            if not len(numbers):
                continue
            source.tally.dropped[reason] += len(numbers)
            source.tally.dropped_bytes[reason] += int(sizes[numbers].sum())
            for number in numbers[:SAMPLES].tolist():
                other = int(found.link[first + number])
                home = int(np.searchsorted(firsts, other, side="right")) - 1
                original = _document(units[home], other - int(firsts[home]))
                share = "" if equal[number] else f", {percents[number]} % alike"
                source.tally.sample(
                    reason,
                    sample_of(_document(unit, number), f"repeats {original.place}{share}", private),
                )


def _document(unit: DoneUnit, number: int) -> Document:
    """A document as it was written."""
    row = orjson.loads(next(document_lines(unit.folder, [number])))
    file, _, record = row["place"].rpartition(":")
    return Document(
        row["id"], row["text"], row["source"], row["license"], Place(file, int(record)), row["meta"]
    )


def _tasks(units: list[DoneUnit], selection: Selection, most_bytes: int) -> Iterator[FileTask]:
    for side in SIDES:
        yield from file_tasks(units, selection, side, most_bytes)


def _write(tool: UnitWorker, task: FileTask) -> WrittenFile:
    return write_file(tool.out, task)


@final
class _Measured:
    """Does work like the one that it is given, and says what the work took.

    Attributes:
        seconds: of processor time.
        peak_bytes: of memory, of the largest process that worked.
    """

    def __init__(self, run: Run) -> None:
        self.seconds = 0.0
        self.peak_bytes = 0
        self._run = run

    def __call__(
        self, work: Callable[[Any, T], R], tasks: Iterable[T], in_order: bool = False
    ) -> Iterator[R]:
        for result, seconds, peak in self._run(partial(_measured, work), tasks, in_order):
            self.seconds += seconds
            self.peak_bytes = max(self.peak_bytes, peak)
            yield result


def _measured(work: Callable[[Any, T], R], tool: Any, task: T) -> tuple[R, float, int]:
    began = time.thread_time()
    return work(tool, task), time.thread_time() - began, peak_resident_bytes()


def _summary(out: Path) -> list[str]:
    """What was told when the corpus was made."""
    text = (out / SUMMARY_FILE).read_text(encoding="utf-8")
    return text.split("```")[1].strip("\n").split("\n")


def _speed_line(told: dict[str, Any]) -> str:
    seconds = sorted(told["cpu_seconds"].items(), key=lambda item: -item[1])
    total = sum(value for _, value in seconds)
    parts = ", ".join(f"{name} {value / total:.0%}" for name, value in seconds if total)
    return (
        f"{told['megabytes_per_cpu_second']} MB of text per second of a core ({parts}); "
        f"memory at its peak {told['peak_bytes']}"
    )
