"""Shards that were stopped go on to the same bytes, and do not do again what was done."""

import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from wmtp.data import parallel_encoding
from wmtp.data.prepare import PrepareReport, prepare
from wmtp.data.shards import open_shards
from wmtp.data.sources import Source, make_source
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError, DataError, StorageError
from wmtp.runtime.lock import hold_run_lock

ROOT = Path(__file__).parents[2]


def rows(count: int) -> list[bytes]:
    """Lines of every kind; what is not plain comes late, so that columns begin in the middle."""
    made: list[Any] = [{"text": f"문서 {n} add fox", "source": f"s{n % 3}"} for n in range(count)]
    made[5] = b"{"
    made[count // 2] = {"prompt": "the ", "completion": "quick", "group": "a\nb"}
    made[count // 2 + 7] = {"tokens": [10**6]}
    made[-3] = {"text": "brown", "loss_weights": 2, "reward": 0.5, "group": "c"}
    made[-2] = {"text": "fox jumps", "loss_weights": [[0, 3, 0.5]], "group": "a\nb"}
    return [row if isinstance(row, bytes) else json.dumps(row).encode() for row in made]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("sources")
    lines = folder / "lines"
    lines.mkdir()
    (lines / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(rows(120)), mtime=0))
    (lines / "b.jsonl").write_bytes(b"\n".join(rows(60)) + b"\n")
    problems = [
        {"name": f"p{n % 9}", "description": "d", "solutions": ["a", "a", f"b{n}"]}
        for n in range(12)  # the last three stand there again
    ]
    contest = folder / "contest.jsonl"
    contest.write_text("\n".join(map(json.dumps, problems)))
    text = folder / "text.txt"
    text.write_text("the quick brown fox\n" * 9)
    return [(str(lines), "train", "auto"), (str(contest), "all", "auto", "all"),
            (str(text), "all", "auto")]  # fmt: skip


@pytest.fixture(scope="module")
def straight(
    sources: list[tuple[str, ...]], tokenizer: TextTokenizer, tmp_path_factory: Any
) -> Path:
    """Shards that nothing disturbed."""
    out: Path = tmp_path_factory.mktemp("straight") / "out"
    made(sources, tokenizer, out)
    return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few lines, each of which is saved."""
    monkeypatch.setattr("wmtp.data.text_files.BLOCK_BYTES", 400)
    monkeypatch.setattr("wmtp.data.prepare._BATCH_CHARS", 60)
    monkeypatch.setattr("wmtp.data.prepare._SECONDS_BETWEEN_SAVES", 0.0)


def made(
    sources: Sequence[tuple[str, ...]], tokenizer: TextTokenizer, out: Path, **more: Any
) -> PrepareReport:
    return prepare([make_source(*source) for source in sources], tokenizer, out, **more)


def stop_after(
    batches: int, sources: Sequence[tuple[str, ...]], tokenizer: TextTokenizer, out: Path
) -> None:
    count = 0

    def stop(documents: int, tokens: int) -> None:
        nonlocal count
        count += 1
        if count > batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(sources, tokenizer, out, on_progress=stop)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def drive(
    folder: Path, sources: list[tuple[str, ...]], tokenizer: TextTokenizer, **more: Any
) -> int:
    tokenizer.save(folder / "tokenizer")
    spec = {"sources": sources, "tokenizer": str(folder / "tokenizer"), "out": str(folder / "out"),
            "workers": 1, "block_bytes": 400, "seed": int(time.time()), **more}  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "tests.data.kill_driver", str(folder / "spec.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_at_any_moment_it_goes_on_to_the_same(
    sources: list[tuple[str, ...]], straight: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    killed = drive(tmp_path, sources, tokenizer, kills=12, seconds=0.12)
    assert killed >= 1
    assert hashes(tmp_path / "out") == hashes(straight)
    assert not (tmp_path / "out.unfinished").exists()


def test_killed_in_place_of_each_renaming_it_goes_on_to_the_same(
    sources: list[tuple[str, ...]], straight: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    # another call each time, and the last of them are those that put the folder in its place
    killed = drive(tmp_path, sources, tokenizer, calls=7, block_bytes=2000)
    assert killed >= 7
    assert hashes(tmp_path / "out") == hashes(straight)
    assert not (tmp_path / "out.unfinished").exists()


def test_two_workers_killed_once_go_on_to_the_same(
    sources: list[tuple[str, ...]], straight: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    drive(tmp_path, sources, tokenizer, kills=1, seconds=3.0, workers=2)
    assert hashes(tmp_path / "out") == hashes(straight)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("batches", "source", "file"),
    [(1, 0, 0), (20, 0, 1), (26, 1, 0)],  # in the first file of lines, the second, the contest
)
def test_what_was_done_is_not_done_again(
    sources: list[tuple[str, ...]],
    straight: Path,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    batches: int,
    source: int,
    file: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_after(batches, sources, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    progress = json.loads((tmp_path / "out.unfinished/progress.json").read_text())
    assert progress["documents"] > 0
    assert (len(progress["sources"]), progress["current"]["file"]) == (source, file)
    tokenized, told = [0], []
    real = parallel_encoding.encode_and_pack

    def counting(*arguments: Any) -> Any:
        packed = real(*arguments)
        tokenized[0] += len(packed.names)
        return packed

    monkeypatch.setattr(parallel_encoding, "encode_and_pack", counting)
    report = made(sources, tokenizer, tmp_path / "out", report=told.append)
    assert tokenized[0] == report.documents - progress["documents"]
    assert told == [
        f"going on with {tmp_path}/out.unfinished: {progress['documents']:,} documents, "
        f"{progress['tokens']:,} tokens are there"
    ]
    assert hashes(tmp_path / "out") == hashes(straight)
    open_shards(tmp_path / "out").verify()
    again = made(sources, tokenizer, tmp_path / "again")
    assert report.lines("shards") == again.lines("shards")


@pytest.mark.usefixtures("small")
def test_the_comparison_notices_a_block_that_was_skipped_or_written_twice(
    sources: list[tuple[str, ...]], straight: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    for change in (-1, 1):
        out = tmp_path / f"out{change}"
        stop_after(4, sources, tokenizer, out)
        file = tmp_path / f"{out.name}.unfinished/progress.json"
        progress = json.loads(file.read_text())
        at = progress["current"]
        content = gzip.decompress((Path(sources[0][0]) / "a.jsonl.gz").read_bytes())
        at["offset"] = (
            content.rindex(b"\n", 0, at["offset"] - 1) if change < 0
            else content.index(b"\n", at["offset"])
        ) + 1  # fmt: skip
        at["line"] += change
        file.write_text(json.dumps(progress))
        made(sources, tokenizer, out)
        assert hashes(out)["tokens.bin"] != hashes(straight)["tokens.bin"]


@pytest.mark.usefixtures("small")
def test_something_else_is_refused_and_named(
    write_lines: Any, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    path = write_lines([{"text": f"line {n}"} for n in range(40)])
    source, out = (str(path), "all", "auto"), tmp_path / "out"
    stop_after(1, [source], tokenizer, out)
    before = path.read_bytes()
    path.write_bytes(before.replace(b"line 39", b"line 99"))
    with pytest.raises(ConfigError, match="rows.jsonl has another content"):
        made([source], tokenizer, out)
    path.write_bytes(before)
    with pytest.raises(ConfigError, match="split of .* is train, and was all"):
        made([(str(path), "train", "auto")], tokenizer, out)
    tokenizer.save(tmp_path / "other")
    (tmp_path / "other/tokenizer_config.json").write_text('{"eos_token": "a"}')
    with pytest.raises(ConfigError, match="the tokenizer is another one"):
        made([source], TextTokenizer.load(tmp_path / "other"), out)
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ConfigError, match=r"sources are .*b\.txt, and were .*rows\.jsonl"):
        made([(str(tmp_path / "b.txt"), "all", "auto")], tokenizer, out)
    told: list[str] = []
    made([source], tokenizer, out, report=told.append)  # none of that cost what was done
    assert told[0].startswith("going on with")


def test_a_complete_folder_is_left_alone(
    write_lines: Any, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    path, out = write_lines([{"text": "add"}, b"{", {"text": "fox"}]), tmp_path / "out"
    told: list[str] = []
    first = prepare([Source(str(path))], tokenizer, out, report=told.append)
    times = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    again = prepare([Source(str(path))], tokenizer, out, report=told.append)
    assert told == [f"{out} is complete: nothing to do"]
    assert again == first
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == times
    path.write_bytes(b'{"text": "other"}\n')
    with pytest.raises(ConfigError, match="made of something else: file .* has another content"):
        prepare([Source(str(path))], tokenizer, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(DataError, match="exists already"):
        prepare([Source(str(path))], tokenizer, tmp_path / "full")
    (tmp_path / "full").rename(tmp_path / "new.unfinished")
    with pytest.raises(DataError, match=r"new\.unfinished' is in the way"):
        prepare([Source(str(path))], tokenizer, tmp_path / "new")


def test_an_empty_folder_takes_the_shards_but_not_the_one_that_we_are_in(
    write_lines: Any, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines([{"text": "add"}])
    (tmp_path / "here").mkdir()
    prepare([Source(str(path))], tokenizer, tmp_path / "here")
    assert open_shards(tmp_path / "here").manifest.documents == 1
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"'\.' cannot be made anew"):
        prepare([Source(str(path))], tokenizer, Path())


def test_two_processes_do_not_write_one_folder(
    write_lines: Any, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    path = write_lines([{"text": "add"}])
    (tmp_path / "out.unfinished").mkdir()
    with (
        hold_run_lock(tmp_path / "out.unfinished/.lock", "other"),
        pytest.raises(ConfigError, match="out' is being written by another process"),
    ):
        prepare([Source(str(path))], tokenizer, tmp_path / "out")


@pytest.mark.usefixtures("small")
def test_a_full_disk_costs_nothing_that_was_done(
    sources: list[tuple[str, ...]],
    straight: Path,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("wmtp.data.shard_writer.ShardWriter.finish", no_space)
        with pytest.raises(StorageError, match="No space left on device"):
            made(sources, tokenizer, tmp_path / "out")
    told: list[str] = []
    made(sources, tokenizer, tmp_path / "out", report=told.append)
    assert told[0].startswith("going on with")
    assert hashes(tmp_path / "out") == hashes(straight)


@pytest.mark.usefixtures("small")
def test_a_file_that_cannot_be_read_for_a_while_costs_nothing_that_was_done(
    sources: list[tuple[str, ...]],
    straight: Path,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Any:
        raise DataError("cannot be read")

    with monkeypatch.context() as away:
        away.setattr("wmtp.data.prepare.read_documents", fail)  # the second source
        with pytest.raises(DataError, match="cannot be read"):
            made(sources, tokenizer, tmp_path / "out")
    told: list[str] = []
    made(sources, tokenizer, tmp_path / "out", report=told.append)
    assert told[0].startswith("going on with")
    assert hashes(tmp_path / "out") == hashes(straight)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "progress.json").write_text("{"), r"progress\.json' cannot be read"),
        (lambda f: (f / "plan.json").write_text("{}"), r"plan\.json' cannot be read"),
        (lambda f: (f / "tokens.bin").write_bytes(b""), "less than was written"),
    ],
)
def test_damage_is_told_and_nothing_is_removed(
    sources: list[tuple[str, ...]],
    tokenizer: TextTokenizer,
    tmp_path: Path,
    spoil: Any,
    message: str,
) -> None:
    stop_after(3, sources, tokenizer, tmp_path / "out")
    spoil(tmp_path / "out.unfinished")
    with pytest.raises(DataError, match=message):
        made(sources, tokenizer, tmp_path / "out")
    assert (tmp_path / "out.unfinished/names.jsonl").is_file()
