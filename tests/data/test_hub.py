import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from wmtp.data import hub
from wmtp.data.documents import BadLines
from wmtp.data.hub import fetch_dataset, files_of_split, hub_folder, is_hub_name
from wmtp.data.prepare import prepare_cached
from wmtp.data.sources import Source, list_files, make_source, read_documents, read_texts
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError, StorageError

Serve = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WMTP_CACHE", str(tmp_path / "cache"))
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "hub"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A hub that has these splits; returns the names that it was asked for."""

    def serve(**splits: list[Mapping[str, Any]]) -> list[str]:
        asked: list[str] = []

        def load_splits(name: str) -> Mapping[str, hub.Rows]:
            asked.append(name)
            return splits

        monkeypatch.setattr(hub, "load_splits", load_splits)
        return asked

    return serve


@pytest.mark.parametrize(
    ("path", "is_name"),
    [
        ("org/name", True),
        ("org/name-v1.1:20231101.ko", True),
        ("org/name/more", False),
        ("name", False),
        ("/org/name", False),
        ("./name", False),
        ("../name", False),
        ("org/name:", False),
        ("org/data.jsonl", False),
        ("org/data.jsonl.gz", False),
        ("org/한국어", False),
        ("https://host/name", False),
    ],
)
def test_what_may_be_a_name_of_the_hub(path: str, is_name: bool) -> None:
    assert is_hub_name(path) == is_name


def test_below_a_folder_of_this_machine_a_name_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "corpora").mkdir()
    assert not is_hub_name("corpora/missing")
    with pytest.raises(DataError, match=r"no such file or folder\. Give a path, python-stdlib"):
        list_files(Source("corpora/missing"))


def test_what_is_there_wins(tmp_path: Path, serve: Serve) -> None:
    asked = serve(train=[{"text": "hub"}])
    (tmp_path / "org").mkdir()
    (tmp_path / "org/name").mkdir()
    (tmp_path / "org/name/a.jsonl").write_text('{"text": "local"}\n')
    assert list(read_texts(Source("org/name"))) == ["local"]
    assert asked == []


def test_rows_are_fetched_once_and_kept_as_json_lines(cache: Path, serve: Serve) -> None:
    asked = serve(train=[{"text": "one 한"}, {"text": "two"}], valid=[{"text": "three"}])
    for _ in range(2):
        assert list(read_texts(Source("org/name:v2"))) == ["one 한", "two", "three"]
    assert asked == ["org/name:v2"]
    assert [path.name for path in sorted(cache.iterdir())] == ["org--name--v2"]
    kept = cache / "org--name--v2"
    assert sorted(path.name for path in kept.iterdir()) == ["train.jsonl", "validation.jsonl"]
    assert (kept / "train.jsonl").read_text() == '{"text": "one \\ud55c"}\n{"text": "two"}\n'


def test_mbpp_is_split_by_task_id_wherever_the_hub_keeps_it(serve: Serve) -> None:
    def row(task_id: int) -> dict[str, Any]:
        return {"task_id": task_id, "text": "t", "code": f"c{task_id}", "test_list": []}

    serve(train=[row(601), row(3)], test=[row(11)], validation=[row(511)], prompt=[row(1)])
    for split, codes in {
        "train": ["c601"],
        "prompt": ["c1", "c3"],
        "test": ["c11"],
        "validation": ["c511"],
    }.items():
        documents = read_documents(make_source("org/mbpp", split, "auto"), BadLines())
        assert sorted(d.segments[1].text for d in documents) == codes  # type: ignore[union-attr]


def test_splits_of_the_hub_are_used_where_it_has_a_validation(serve: Serve) -> None:
    serve(train=[{"text": "a"}], dev=[{"text": "b"}], test=[{"text": "c"}])
    for split, texts in {
        "train": ["a"],
        "validation": ["b"],
        "test": ["c"],
        "all": ["c", "a", "b"],
    }.items():
        assert list(read_texts(make_source("org/name", split, "auto"))) == texts
    with pytest.raises(DataError, match="split is 'prompt', but the hub has test, train, valid"):
        list_files(Source("org/name", "prompt"))


def test_without_a_validation_the_training_data_are_divided(serve: Serve) -> None:
    rows = [{"text": f"text {n}"} for n in range(300)]
    serve(train=rows, test=[{"text": "test"}])
    train, validation = (
        list(read_texts(make_source("org/name", split, "auto")))
        for split in ("train", "validation")
    )
    assert sorted(train + validation) == sorted(row["text"] for row in rows)
    assert 3 <= len(validation) <= 30
    assert list(read_texts(Source("org/name", "test"))) == ["test"]


def test_a_split_that_is_only_for_tests_is_not_learned(tmp_path: Path) -> None:
    files = (tmp_path / "test.jsonl",)
    with pytest.raises(DataError, match="split is 'train', but the hub has test"):
        files_of_split("org/name", files, "train")
    other = (tmp_path / "a.jsonl", tmp_path / "test.jsonl")
    assert files_of_split("org/name", other, "train") == (other[:1], "train")


def test_contest_from_the_hub_keeps_its_splits(
    serve: Serve, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    row = {"name": "p", "description": "d", "solutions": {"language": [3], "solution": ["a"]}}
    wrong = {"incorrect_solutions": {"language": [3], "solution": ["b"]}}
    serve(train=[{**row, **wrong}], valid=[{**row, "name": "q"}], test=[{**row, "name": "r"}])
    source = Source("org/contests", "train", solutions="all")
    said: list[str] = []
    shards = prepare_cached([source], tokenizer, tmp_path / "shards", said.append)
    assert said[0] == f"fetching {source.path} from the Hugging Face hub"  # seconds, or minutes
    assert shards.rewards is not None
    assert shards.rewards.tolist() == [1, 0]
    assert len(list(read_texts(Source("org/contests", "test")))) == 1


def test_values_that_json_lacks_are_kept_as_text(cache: Path, serve: Serve) -> None:
    import datetime

    serve(train=[{"text": "a", "date": datetime.date(2026, 1, 2)}])
    assert list(read_texts(Source("org/name"))) == ["a"]
    (line,) = (cache / "org--name/train.jsonl").read_text().splitlines()
    assert json.loads(line)["date"] == "2026-01-02"


def test_a_fetch_that_breaks_off_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        yield {"text": "a"}
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "load_splits", lambda name: {"train": broken()})
    with pytest.raises(KeyboardInterrupt):
        fetch_dataset("org/name")
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    serve(train=[{"text": "a"}])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WMTP_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="could not be written"):
        fetch_dataset("org/name")


def test_another_process_that_was_faster_is_no_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_splits(name: str) -> Mapping[str, hub.Rows]:
        (cache / "org--name").mkdir(parents=True)
        (cache / "org--name/train.jsonl").write_text('{"text": "theirs"}\n')
        return {"train": [{"text": "ours"}]}

    monkeypatch.setattr(hub, "load_splits", load_splits)
    assert list(read_texts(Source("org/name"))) == ["theirs"]
    assert [path.name for path in cache.iterdir()] == ["org--name"]


def test_without_a_cache_of_ones_own_the_home_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WMTP_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert hub_folder("a/b:c") == Path("/home/somebody/.cache/wmtp/hub/a--b--c")


# With the library itself --------------------------------------------------------------------------


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"no such file .*: pip install 'wmtp\[hub\]'\."):
        fetch_dataset("org/name")


def test_the_library_reads_a_real_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "published"
    folder.mkdir()
    problem = {
        "name": "p",
        "description": "d",
        "solutions": {"language": [3, 2], "solution": ["a", "int a;"]},
        "incorrect_solutions": {"language": [3], "solution": ["b"]},
    }
    (folder / "train.jsonl").write_text(json.dumps(problem) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({**problem, "name": "q"}) + "\n")
    asked = []
    load_dataset = datasets.load_dataset

    def load_local(repository: str, config: str | None, *, trust_remote_code: bool) -> Any:
        assert not trust_remote_code
        asked.append((repository, config))
        return load_dataset(str(folder), cache_dir=str(tmp_path / "hf"))

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    bad = BadLines()
    documents = list(read_documents(Source("org/contests:all", solutions="all"), bad))
    assert asked == [("org/contests", "all")]
    assert [(d.group, d.reward) for d in documents] == [
        ("q", 1.0),
        ("q", 0.0),
        ("p", 1.0),
        ("p", 0.0),
    ]
    assert bad.passed_over == {"program in another language": 2}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach it"), r"cannot be reached: Couldn't reach it\. Check the"),
        (ValueError("Config name is missing.\nPick one"), r"missing\. Pick one\. A configuration"),
        (RuntimeError("scripts are no longer supported"), "cannot read it .* no longer supported"),
    ],
)
def test_what_the_library_says_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(repository: str, config: str | None, *, trust_remote_code: bool) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=message) as caught:
        fetch_dataset("org/name")
    assert "\n" not in str(caught.value)


def test_a_gated_data_set_names_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(repository: str, config: str | None, *, trust_remote_code: bool) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' is a gated dataset.")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"is a gated dataset\. If it is .* set HF_TOKEN\."):
        fetch_dataset("org/name")


def test_offline_the_command_says_which_variable_and_file_would_help(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    command = [sys.executable, "-m", "wmtp", "tokenizer", "train"]
    done = subprocess.run(
        [*command, "--source", "org/name", "--out", str(tmp_path / "tokenizer")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: data source 'org/name': no such file or folder here, and HF_HUB_OFFLINE is set, so "
        "the Hugging Face hub is not asked for it. Unset HF_HUB_OFFLINE, or put its rows into "
        f"{tmp_path}/cache/hub/org--name/train.jsonl."
    )
