"""What is shipped in datasets/ is what its README says: every program is run against its tests."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from wmtp.data.documents import BadLines
from wmtp.data.pairs import find_pairs
from wmtp.data.prepare import prepare
from wmtp.data.shards import open_shards
from wmtp.data.sources import Source, list_files, make_source, read_documents
from wmtp.data.tokenizer import TextTokenizer

FOLDER = Path(__file__).parents[2] / "datasets"
MBPP, HUMANEVAL, CONTEST = (
    [json.loads(line) for line in (FOLDER / f"{name}_small.jsonl").read_text().splitlines()]
    for name in ("mbpp", "humaneval", "contest")
)


@pytest.mark.parametrize("row", MBPP, ids=lambda row: str(row["task_id"]))
def test_mbpp_code_passes_its_tests(row: dict[str, Any]) -> None:
    namespace: dict[str, Any] = {}
    for code in (row["code"], row["test_setup_code"], *row["test_list"]):
        exec(code, namespace)
    name = row["code"].partition("def ")[2].partition("(")[0]
    with pytest.raises(AssertionError):  # the tests can fail
        exec("\n".join(row["test_list"]), {**namespace, name: lambda *_: object()})


@pytest.mark.parametrize("row", HUMANEVAL, ids=lambda row: row["entry_point"])
def test_humaneval_solution_passes_its_test(row: dict[str, Any]) -> None:
    namespace: dict[str, Any] = {}
    exec(row["prompt"] + row["canonical_solution"] + row["test"], namespace)
    namespace["check"](namespace[row["entry_point"]])
    with pytest.raises(AssertionError):
        namespace["check"](lambda *_: object())


def answer_to(program: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    output = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "stdin", io.StringIO(text))
        exec(program, {"__name__": "__main__"})
    return output.getvalue()


def passes(program: str, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    for tests in (row["public_tests"], row["private_tests"]):
        for given, expected in zip(tests["input"], tests["output"], strict=True):
            try:
                if answer_to(program, given, monkeypatch).split() != expected.split():
                    return False
            except (ArithmeticError, EOFError, LookupError, ValueError):  # it crashed: a failure
                return False
    return True


def programs(key: str) -> list[Any]:
    return [
        pytest.param(row, program, id=f"{row['name']}-{index}")
        for row in CONTEST
        for index, program in enumerate(row[key]["solution"])
    ]


@pytest.mark.parametrize(("row", "program"), programs("solutions"))
def test_correct_contest_programs_pass(
    row: dict[str, Any], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passes(program, row, monkeypatch)


@pytest.mark.parametrize(("row", "program"), programs("incorrect_solutions"))
def test_incorrect_contest_programs_fail(
    row: dict[str, Any], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not passes(program, row, monkeypatch)


def test_each_contest_problem_has_four_programs_of_either_kind_at_least() -> None:
    assert len(CONTEST) == len(MBPP) == len(HUMANEVAL) == 10
    for row in CONTEST:
        for key in ("solutions", "incorrect_solutions"):
            assert len(set(row[key]["solution"])) == len(row[key]["language"]) >= 4


def test_the_readers_take_all_of_it(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    for name, count in {"mbpp": 10, "humaneval": 10, "contest": 81}.items():
        source, bad = Source(str(FOLDER / f"{name}_small.jsonl")), BadLines()
        assert list_files(source).format == name
        if name == "contest":
            source = Source(source.path, solutions="all")
        assert len(list(read_documents(source, bad))) == count
        assert (bad.lines, dict(bad.passed_over)) == ([], {})
    mbpp = str(FOLDER / "mbpp_small.jsonl")
    counts = {
        split: len(list(read_documents(make_source(mbpp, split, "auto"), BadLines())))
        for split in ("train", "validation", "test", "prompt")
    }
    assert counts == {"train": 5, "validation": 2, "test": 2, "prompt": 1}
    contest = str(FOLDER / "contest_small.jsonl")
    for split in ("train", "validation"):
        source = make_source(contest, split, "auto", "all")
        prepare([source], tokenizer, tmp_path / split)
    assert find_pairs(open_shards(tmp_path / "train")).problems == 10


@pytest.mark.parametrize(
    ("rows", "real"), [(MBPP, "mbpp.jsonl"), (CONTEST, "contest_format.jsonl")]
)
def test_fields_are_those_of_the_real_data(
    rows: list[dict[str, Any]], real: str, real_data: Path
) -> None:
    with (real_data / "code" / real).open() as file:
        first = json.loads(file.readline())
    for row in rows:
        assert {key: type(value) for key, value in row.items()} == {
            key: type(value) for key, value in first.items()
        }
