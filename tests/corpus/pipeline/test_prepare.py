"""Raw files to clean text: what comes out, that all is accounted for and always equal."""

import gzip
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from wmtp.corpus.duplicates import comparable
from wmtp.corpus.duplicates.signatures import jaccard, shingles
from wmtp.corpus.pipeline import plan as plan_module
from wmtp.corpus.pipeline.report import SourceReport
from wmtp.errors import ConfigError, DataError

from .corpora import drive, hashes, prepared, prose, write_corpus, write_sources


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A list of sources, and what was made of it without a stop, in one unit for each file."""
    folder = tmp_path_factory.mktemp("corpus")
    sources = write_corpus(folder, 40)
    prepared(sources, folder / "whole")
    return sources, folder / "whole"


def rows_of(out: Path, side: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(out.glob(f"{side}-*.jsonl.gz"))
        for line in gzip.open(path, "rt", encoding="utf-8")
    ]


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def source_of(out: Path, name: str) -> dict[str, Any]:
    return next(source for source in report_of(out)["sources"] if source["name"] == name)


def test_every_byte_and_document_is_accounted_for(corpus: tuple[Path, Path]) -> None:
    _, out = corpus
    rows = {side: rows_of(out, side) for side in ("train", "validation")}
    for source in report_of(out)["sources"]:
        kept = source["kept"]
        for side, of_side in rows.items():
            mine = [row for row in of_side if row["source"] == source["name"]]
            assert kept[side]["documents"] == len(mine)
            assert kept[side]["text_bytes"] == sum(len(row["text"].encode()) for row in mine)
        parts = (
            sum(side["text_bytes"] for side in kept.values()),
            sum(source["dropped_bytes"].values()),
            sum(source["changed_bytes"].values()),
        )
        assert source["bytes_in"] == sum(parts)
        assert source["records"] == (
            source["documents"] + sum(source["bad"].values()) + sum(source["passed_over"].values())
        )


def test_a_byte_that_is_lost_would_be_noticed() -> None:
    report = SourceReport("web", "CC0-1.0")
    report.tally.documents, report.tally.bytes_in = 2, 100
    report.kept["train"].documents, report.kept["train"].text_bytes = 1, 60
    report.tally.drop("too_short", 40)
    report.check()
    report.tally.changed_bytes["normalize"] = -1
    with pytest.raises(RuntimeError, match="web: 2 documents of 100 bytes went in, 2 of 99"):
        report.check()


def test_what_was_planted_is_found_and_told(corpus: tuple[Path, Path]) -> None:
    _, out = corpus
    web = source_of(out, "web")
    assert web["dropped"] == {
        "exact_duplicate": 1, "near_duplicate": 1, "too_short": 1, "foreign_language": 1,
        "evaluation_overlap": 1,
    }  # fmt: skip
    assert web["bad"] == {"no text at text": 1, "not JSON": 1}
    samples = web["samples"]
    assert samples["exact_duplicate"][0]["detail"] == "repeats web.jsonl:0"
    assert samples["near_duplicate"][0]["detail"].startswith("repeats web.jsonl:1, 9")
    assert samples["bad: not JSON"] == [{"place": "web.jsonl:13", "detail": "", "text": ""}]
    assert source_of(out, "wiki")["passed_over"] == {"redirect": 1}
    written = "".join(row["text"] for side in ("train", "validation") for row in rows_of(out, side))
    assert "010-1234-5678" not in written
    assert "\u1112" not in written
    assert "\r" not in written
    assert prose(7777, 20) not in written
    assert prose(1001) in written


def test_documents_carry_where_they_come_from(corpus: tuple[Path, Path]) -> None:
    _, out = corpus
    row = next(row for row in rows_of(out, "train") if row["source"] == "wiki")
    number = int(row["id"])
    assert row["text"] == prose(number)
    assert row["license"] == "CC-BY-SA-4.0"
    assert row["place"] == f"kowiki.xml.bz2:{number}"
    assert row["meta"] == {"title": f"글 {number}"}
    assert report_of(out)["licenses"]["AI Hub"]["documents"] == 40


def test_train_and_validation_are_not_alike(corpus: tuple[Path, Path]) -> None:
    _, out = corpus
    train, validation = (
        [shingles(comparable(row["text"])) for row in rows_of(out, side)]
        for side in ("train", "validation")
    )
    assert 10 < len(validation) < 80
    assert max(jaccard(one, other) for one in validation for other in train) < 0.5


def test_the_report_names_no_folder_of_this_machine(corpus: tuple[Path, Path]) -> None:
    sources, out = corpus
    for name in ("report.json", "report.md"):
        assert str(sources.parent) not in (out / name).read_text()


# always equal -------------------------------------------------------------------------------------


def test_units_of_another_size_give_the_same(
    corpus: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, out = corpus
    monkeypatch.setattr(plan_module, "SMALLEST_UNIT_BYTES", 8_000)
    prepared(sources, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(out)


def test_ended_before_its_working_files_were_removed_it_removes_them(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    sources, out = corpus
    again = tmp_path / "out"
    shutil.copytree(out, again)
    (again / "work" / "units").mkdir(parents=True)
    (again / "work" / "units" / "left.npy").write_bytes(b"left")
    prepared(sources, again)
    assert hashes(again) == hashes(out)


def test_killed_at_any_moment_it_goes_on_to_the_same(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    sources, out = corpus
    more = {"seconds": 0.4, "kills": 8, "unit_bytes": 8_000, "seed": int(time.time())}
    assert drive(tmp_path, sources, tmp_path / "out", **more) >= 1  # the first is always in time
    assert hashes(tmp_path / "out") == hashes(out)


def test_killed_in_place_of_each_renaming_it_goes_on_to_the_same(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    sources, out = corpus
    killed = drive(tmp_path, sources, tmp_path / "out", calls=100, unit_bytes=100_000)
    assert killed >= 5  # else there is less to rename than there was
    assert hashes(tmp_path / "out") == hashes(out)


def test_two_workers_killed_once_give_the_same(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    sources, out = corpus
    more = {"seconds": 2.5, "kills": 1, "unit_bytes": 12_000, "workers": 2}
    drive(tmp_path, sources, tmp_path / "out", **more)
    assert hashes(tmp_path / "out") == hashes(out)


def test_files_are_cut_by_bytes_of_text(
    corpus: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmtp.corpus.pipeline import prepare as module

    sources, out = corpus
    real = module.file_tasks
    monkeypatch.setattr(
        module, "file_tasks", lambda units, selection, side, _: real(units, selection, side, 9_000)
    )
    prepared(sources, tmp_path / "out")
    for side in ("train", "validation"):
        assert rows_of(tmp_path / "out", side) == rows_of(out, side)
    files = report_of(tmp_path / "out")["files"]
    train = [file for file in files if file["side"] == "train"]
    assert [file["name"] for file in train] == [
        f"train-{i:05d}.jsonl.gz" for i in range(len(train))
    ]
    assert len(train) >= 5
    assert all(8_000 < file["text_bytes"] < 10_000 for file in train[:-1])


def test_a_finished_folder_is_left_alone(corpus: tuple[Path, Path]) -> None:
    sources, out = corpus
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    lines = prepared(sources, out)
    assert lines[0] == f"{out} is complete: nothing to do"
    assert any(line.startswith("source ") for line in lines)
    after = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    assert after == before
    assert not (out / "work").exists()


# what is refused ----------------------------------------------------------------------------------


def changed(sources: Path, folder: Path, **values: Any) -> Path:
    return write_sources(folder, yaml.safe_load(sources.read_text()) | values)


def test_other_settings_are_refused(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    sources, out = corpus
    before = hashes(out)
    with pytest.raises(ConfigError, match=r"duplicates.threshold is 0.9, and was 0.8"):
        prepared(changed(sources, tmp_path, duplicates={"threshold": 0.9}), out)
    with pytest.raises(ConfigError, match="file evaluation.jsonl is gone"):
        prepared(changed(sources, tmp_path, decontaminate=[]), out)
    assert hashes(out) == before


def test_a_changed_file_is_refused_and_a_touched_one_is_not(tmp_path: Path) -> None:
    sources, out = write_corpus(tmp_path, 20), tmp_path / "out"
    prepared(sources, out)
    raw = tmp_path / "raw" / "web.jsonl"
    os.utime(raw, (1, 1))
    assert prepared(sources, out)[0].endswith("nothing to do")
    raw.write_bytes(raw.read_bytes().replace("바람".encode(), "비람".encode(), 1))
    with pytest.raises(ConfigError, match=r"file web.jsonl has another content"):
        prepared(sources, out)


def test_another_version_is_refused(
    corpus: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, out = corpus
    monkeypatch.setattr(plan_module, "__version__", "99.0")
    with pytest.raises(ConfigError, match=r"version of wmtp is 99.0, and was"):
        prepared(sources, out)


def test_a_folder_of_something_else_is_refused(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(DataError, match="no corpus was begun in it"):
        prepared(corpus[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def only(folder: Path, content: bytes, **values: Any) -> Path:
    (folder / "one.jsonl").write_bytes(content)
    source = {"name": "one", "paths": [f"{folder}/one.jsonl"], "format": "jsonl",
              "license": "CC0-1.0"}  # fmt: skip
    return write_sources(folder, {"sources": [source | values]})


def test_a_source_that_is_mostly_bad_or_empty_is_refused(tmp_path: Path) -> None:
    good = json.dumps({"text": prose(1)}).encode()
    with pytest.raises(DataError, match=r"source one: 2 of 3 records cannot be read \(not JSON 2"):
        prepared(only(tmp_path, good + b"\n{\n{\n"), tmp_path / "a")
    with pytest.raises(
        DataError, match=r"source one \(one.jsonl\): none of its 0 records is a doc"
    ):
        prepared(only(tmp_path, b""), tmp_path / "b")
    with pytest.raises(DataError, match=r"source one: '.*/no.*' matches no file"):
        prepared(only(tmp_path, good, paths=[f"{tmp_path}/no*"]), tmp_path / "c")
    # half is not most; and a folder that nobody could go on with is free again
    prepared(only(tmp_path, good + b"\n{\n"), tmp_path / "a")


def test_samples_show_no_private_data(tmp_path: Path) -> None:
    text = "문의 010-1234-5678 " + "x " * 40
    lines = [{"text": prose(1)}, {"text": text + "English only, nothing else. " * 9}]
    prepared(only(tmp_path, b"\n".join(json.dumps(row).encode() for row in lines)), tmp_path / "a")
    (sample,) = source_of(tmp_path / "a", "one")["samples"]["foreign_language"]
    assert "010" not in sample["text"]
    assert sample["text"].startswith("문의 ")
    assert "010" not in (tmp_path / "a" / "report.md").read_text()
