import gzip
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from wmtp.data import text_files
from wmtp.data.documents import BadLines, Document, Segment
from wmtp.data.sources import Source, list_files, make_source, read_documents, read_texts
from wmtp.errors import DataError


def names(source: Source, bad: BadLines | None = None) -> list[str]:
    return [document.name for document in read_documents(source, bad or BadLines())]


def mbpp_row(task_id: int) -> dict[str, Any]:
    return {"task_id": task_id, "text": "t", "code": "c", "test_list": ["assert 1"]}


def test_bad_lines_are_named_and_the_rest_is_used(write_lines: Any) -> None:
    path = write_lines([b'\xef\xbb\xbf{"text": "one"}\r', b"", {"text": 2}, {"text": "two"}, b"{"])
    bad = BadLines()
    assert names(Source(str(path)), bad) == [f"{path}:1", f"{path}:4"]
    assert [(line.place, line.reason) for line in bad.lines] == [
        (f"{path}:3", "text is not a string"),
        (f"{path}:5", "not JSON"),
    ]
    assert bad.per_reason() == {"text is not a string": 1, "not JSON": 1}


def test_summary_shows_the_first_five_and_counts_the_rest(write_lines: Any) -> None:
    path = write_lines([{"text": "a"}] * 9 + [b"{"] * 8)
    bad = BadLines()
    names(Source(str(path)), bad)
    assert len(bad.summary()) == 6
    assert bad.summary()[-1] == "and 3 more"


def test_mostly_bad_is_refused_with_the_first_reason(write_lines: Any) -> None:
    path = write_lines([b"{", b"{", {"text": "a"}])
    with pytest.raises(DataError, match=r"2 of 3 lines cannot be used as jsonl; .*rows.jsonl:1"):
        names(Source(str(path)))


@pytest.mark.parametrize("rows", [[], [b"", b""]])
def test_an_empty_source_is_refused(write_lines: Any, rows: list[bytes]) -> None:
    with pytest.raises(DataError, match="is empty"):
        names(Source(str(write_lines(rows))))


def test_a_line_too_long_is_passed_over_in_pieces(
    write_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE_BYTES", 40)
    path = write_lines([{"text": "a"}, {"text": "b" * 1000}, {"text": "c"}])
    bad = BadLines()
    assert names(Source(str(path)), bad) == [f"{path}:1", f"{path}:3"]
    assert bad.lines[0].reason == "line too long"


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_compressed_lines_read_the_same(tmp_path: Path, suffix: str, compress: Any) -> None:
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert list(read_texts(Source(str(path)))) == ["one", "two"]


def test_broken_compression_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 100)[:-12])
    with pytest.raises(DataError, match="cannot be decompressed"):
        names(Source(str(path)))


def test_mbpp_is_recognized_and_split_by_task_id(write_lines: Any) -> None:
    path = write_lines([mbpp_row(n) for n in (1, 10, 11, 510, 511, 600, 601, 974)])
    assert list_files(Source(str(path))).format == "mbpp"
    for split, lines in {
        "prompt": [1, 2],
        "test": [3, 4],
        "validation": [5, 6],
        "train": [7, 8],
        "all": [1, 2, 3, 4, 5, 6, 7, 8],
    }.items():
        assert names(make_source(str(path), split, "auto")) == [f"{path}:{n}" for n in lines]


def humaneval_row(number: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f"def f{number}():\r\n",
        "canonical_solution": "    return 1\n",
        "entry_point": f"f{number}",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }


def test_humaneval_is_recognized_and_is_for_testing_alone(write_lines: Any, tmp_path: Path) -> None:
    path = write_lines([humaneval_row(n) for n in range(3)])
    assert list_files(Source(str(path))).format == "humaneval"
    first = next(iter(read_documents(Source(str(path)), BadLines())))
    assert first == Document(
        f"{path}:1", (Segment("def f0():\n", wanted=False), Segment("    return 1\n"))
    )
    assert len(names(Source(str(path), "test"))) == len(names(Source(str(path)))) == 3
    with pytest.raises(DataError, match="split is 'train', but HumanEval is a benchmark"):
        names(Source(str(path), "train"))
    packed = tmp_path / "h.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert len(names(Source(str(packed), "test"))) == 3


def test_broken_humaneval_rows_say_why(write_lines: Any) -> None:
    rows = [*map(humaneval_row, range(5)), humaneval_row(2), {**humaneval_row(7), "task_id": 7}]
    bad = BadLines()
    path = write_lines([*rows, {**humaneval_row(8), "canonical_solution": ""}])
    assert len(names(Source(str(path)), bad)) == 5
    assert [line.reason for line in bad.lines] == [
        "task_id repeated",
        "task_id is not a string",
        "canonical_solution is empty",
    ]


def contest_row(
    name: str, correct: Any, incorrect: Any = None, description: str = "Add.\r\n"
) -> dict[str, Any]:
    row = {"name": name, "description": description, "solutions": correct}
    return row if incorrect is None else {**row, "incorrect_solutions": incorrect}


def of_language(*programs: tuple[object, object]) -> dict[str, list[object]]:
    return {"language": [p[0] for p in programs], "solution": [p[1] for p in programs]}


def test_contest_row_gives_a_document_per_program(write_lines: Any) -> None:
    path = write_lines(
        [
            contest_row(
                "sum",
                of_language((3, "a = 1\r\n"), (2, "int a;"), (3, "a = 1\n"), (3, "b"), (3, "c")),
                of_language((3, "c"), (3, "d"), (4, "int d"), (3, "d")),
            )
        ]
    )
    assert list_files(Source(str(path))).format == "contest"
    bad = BadLines()
    documents = list(read_documents(Source(str(path)), bad))
    prompt = Segment('"""\nAdd.\n\n"""\n', wanted=False)
    assert documents == [
        Document(f"{path}:1 solutions[0]", (prompt, Segment("a = 1\n"))),
        Document(f"{path}:1 solutions[3]", (prompt, Segment("b"))),
    ]
    assert bad.passed_over == {
        "program in another language": 1,
        "duplicate program": 1,
        "program that is both correct and incorrect": 1,
    }
    assert bad.lines == []
    bad = BadLines()
    documents = list(read_documents(Source(str(path), solutions="all"), bad))
    assert [
        (d.name[-22:], d.reward, d.group) if isinstance(d, Document) else d for d in documents
    ] == [
        (f"{path}:1 solutions[0]"[-22:], 1.0, "sum"),
        (f"{path}:1 solutions[3]"[-22:], 1.0, "sum"),
        ("incorrect_solutions[1]", 0.0, "sum"),
    ]
    assert bad.passed_over == {
        "program in another language": 2,
        "duplicate program": 2,
        "program that is both correct and incorrect": 1,
    }
    assert bad.report() == [
        "5 passed over: program in another language 2, duplicate program 2, "
        "program that is both correct and incorrect 1"
    ]


def test_programs_may_come_as_a_list(write_lines: Any) -> None:
    for programs in (["a", "b"], [{"solution": "a"}, {"solution": "b", "language": "PYTHON3"}]):
        path = write_lines([contest_row("p", programs)])
        assert [t[-1] for t in read_texts(Source(str(path)))] == ["a", "b"]


def test_a_language_of_any_type_is_another_language(write_lines: Any) -> None:
    path = write_lines([contest_row("p", of_language((3, "a"), ([3], "b"), (1, "print 1")))])
    bad = BadLines()
    assert len(names(Source(str(path)), bad)) == 1
    assert bad.passed_over == {"program in another language": 2}


def test_broken_programs_and_problems_are_named(write_lines: Any) -> None:
    path = write_lines(
        [
            contest_row("p", ["a", "b", "c", "d", "e", "f", 3, ""]),
            contest_row("p", ["x"]),
            contest_row("", ["x"]),
            contest_row("q", {"solution": ["x"], "language": []}),
            contest_row("r", {"solution": "x"}),
            contest_row("s", "x"),
        ]
    )
    bad = BadLines()
    with pytest.raises(DataError, match="7 of 13 programs cannot be used as contest"):
        names(Source(str(path)), bad)
    assert [(line.place.removeprefix(str(path)), line.reason) for line in bad.lines] == [
        (":1 solutions[6]", "program is not a string"),
        (":1 solutions[7]", "program is empty"),
        (":2", "name repeated"),
        (":3", "name is empty"),
        (":4", "solutions.language is not a list as long as solutions.solution"),
        (":5", "solutions.solution is not a list"),
        (":6", "solutions is not a list of programs"),
    ]


def test_contest_splits_share_problems_but_no_program(write_lines: Any) -> None:
    programs = [f"print({n})" for n in range(300)]
    path = write_lines([contest_row(name, programs) for name in ("p", "q")])
    train, validation = (
        list(read_documents(make_source(str(path), split, "auto", "all"), BadLines()))
        for split in ("train", "validation")
    )
    assert len(train) + len(validation) == 600
    assert 40 <= len(validation) <= 80  # 60 expected, of which the root of the variance is 7
    assert {d.group for d in train} == {d.group for d in validation} == {"p", "q"}
    assert not {d.name for d in train} & {d.name for d in validation}
    for one in ("p", "q"):  # another problem's same program may be on the other side
        texts = [
            {d.segments[1].text for d in part if isinstance(d, Document) and d.group == one}
            for part in (train, validation)
        ]
        assert not texts[0] & texts[1]
    with pytest.raises(DataError, match="split is 'test', but only MBPP"):
        names(Source(str(path), "test"))


def test_solutions_are_a_matter_of_contests(write_lines: Any) -> None:
    path = write_lines([{"text": "a"}])
    with pytest.raises(DataError, match="solutions is 'all', but only contest files .* jsonl"):
        names(Source(str(path), solutions="all"))
    with pytest.raises(DataError, match="solutions is 'wrong'. Use correct, all"):
        make_source("a", "all", "auto", "wrong")


def test_repeated_task_id_is_bad(write_lines: Any) -> None:
    path = write_lines([mbpp_row(1), mbpp_row(2), mbpp_row(1)])
    bad = BadLines()
    assert len(names(Source(str(path)), bad)) == 2
    assert bad.summary() == [f"{path}:3: task_id repeated (1, first in {path}:1)"]


def test_split_that_only_mbpp_has(write_lines: Any) -> None:
    with pytest.raises(DataError, match="split is 'test', but only MBPP"):
        names(Source(str(write_lines([{"text": "a"}])), split="test"))


def test_split_without_documents(write_lines: Any) -> None:
    with pytest.raises(
        DataError, match=r"none of its 1 lines is in the split 'validation' \(5% of"
    ):
        names(Source(str(write_lines([{"text": "a"}])), split="validation"))


def test_train_and_validation_divide_lines_by_text(write_lines: Any) -> None:
    path = write_lines([{"text": f"text {n % 300}"} for n in range(600)])
    train = list(read_texts(Source(str(path), "train")))
    validation = list(read_texts(Source(str(path), "validation")))
    assert len(train) + len(validation) == 600
    assert 6 <= len(validation) <= 60
    assert not set(train) & set(validation)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in (
        "b.py",
        "a/z.py",
        "a/readme.md",
        "a.txt",
        ".hidden/x.py",
        "a/.hidden.py",
        "a/__pycache__/x.py",
        "lib/site-packages/x.py",
        "node_modules/x.js",
        "image.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "link.py").symlink_to(root / "b.py")
    (root / "loop").symlink_to(root)
    (root / "empty.py").write_text("")
    return root


def test_tree_is_sorted_and_skips_what_is_not_source(tree: Path) -> None:
    assert list(read_texts(Source(str(tree)))) == ["a.txt", "a/readme.md", "a/z.py", "b.py"]
    assert names(Source(str(tree)))[0] == str(tree / "a.txt")
    assert list(read_texts(Source(str(tree), format="text"))) == ["a.txt", "a/readme.md"]


def test_binary_file_in_a_tree_is_named(tree: Path) -> None:
    (tree / "b.py").write_bytes(b"\xff\xfe")
    (tree / "a/z.py").write_bytes(b"a\0b")
    bad = BadLines()
    assert len(names(Source(str(tree)), bad)) == 2
    assert [(line.place, line.reason) for line in bad.lines] == [
        (str(tree / "a/z.py"), "NUL byte"),
        (str(tree / "b.py"), "not valid UTF-8"),
    ]


def test_split_of_a_tree_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    for root in (tmp_path / "one", tmp_path / "two"):
        root.mkdir()
        for n in range(60):
            (root / f"{n}.py").write_text("x")
    splits = [
        {Path(name).name for name in names(Source(str(tmp_path / root), "validation"))}
        for root in ("one", "two")
    ]
    assert splits[0] == splits[1]


def test_newlines_and_byte_order_mark_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert list(read_texts(Source(str(path)))) == ["one\ntwo\n"]


def test_a_single_text_is_split_by_position(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {n}\n" for n in range(100)))
    (train,), (validation,) = (
        list(read_texts(make_source(str(path), split, "auto"))) for split in ("train", "validation")
    )
    assert train + validation == path.read_text()
    assert validation.startswith("line 9")


def test_folder_of_jsonl_is_read_as_such(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    assert list(read_texts(Source(str(tmp_path)))) == ["one", "two"]
    (tmp_path / "c.py").write_text("x")
    with pytest.raises(DataError, match="both text and JSONL"):
        list_files(Source(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "format_", "message"),
    [
        ("missing", "auto", "no such file or folder"),
        ("a.csv", "auto", "its format is not known from the name"),
        ("a.csv", "tree", "format is 'tree', but this is a file"),
        ("folder", "auto", "no file of the format tree"),
    ],
)
def test_unusable_source_says_what_to_do(
    tmp_path: Path, name: str, format_: str, message: str
) -> None:
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        names(make_source(str(tmp_path / name), "all", format_))


def test_words_that_are_no_split_or_format() -> None:
    with pytest.raises(DataError, match="split is 'dev'. Use all, train"):
        make_source("a", "dev", "auto")
    with pytest.raises(DataError, match="format is 'csv'. Use auto, mbpp"):
        make_source("a", "all", "csv")


def test_python_has_its_own_library_to_read() -> None:
    found = list_files(Source("python-stdlib"))
    relative = {path.relative_to(found.root).as_posix() for path in found.files}
    assert "textwrap.py" in relative
    assert "json/decoder.py" in relative
    assert not any(
        {"test", "tests", "idle_test", "site-packages"} & set(name.split("/")) for name in relative
    )


def test_real_mbpp(real_data: Path) -> None:
    bad = BadLines()
    path = str(real_data / "code/mbpp.jsonl")
    counts = {s: len(names(make_source(path, s, "auto"), bad)) for s in ("all", "train", "test")}
    assert counts == {"all": 974, "train": 374, "test": 500}
    assert not bad.lines
    documents = list(read_documents(Source(path), bad))
    assert all(
        isinstance(d, Document) and "\r" not in s.text for d in documents for s in d.segments
    )


def test_real_humaneval(real_data: Path) -> None:
    bad = BadLines()
    documents = list(read_documents(Source(str(real_data / "code/HumanEval.jsonl.gz")), bad))
    assert len(documents) == 164
    assert not bad.lines
    assert isinstance(documents[0], Document)
    assert documents[0].segments[1].text.startswith("    for idx, elem in enumerate(numbers):")


def test_real_contest(real_data: Path) -> None:
    """352 and 162 correct, 504 and 344 incorrect programs, none of them twice."""
    path, bad = str(real_data / "code/contest_format.jsonl"), BadLines()
    documents = list(read_documents(Source(path, solutions="all"), bad))
    counts = Counter((d.group, d.reward) for d in documents)
    assert counts == {
        ("refactory/question_1", 1.0): 352,
        ("refactory/question_1", 0.0): 504,
        ("refactory/question_2", 1.0): 162,
        ("refactory/question_2", 0.0): 344,
    }
    assert not bad.lines
    assert not bad.passed_over
    assert len(names(Source(path))) == 352 + 162
    sizes = [len(names(Source(path, split, solutions="all"))) for split in ("train", "validation")]  # type: ignore[arg-type]
    assert sum(sizes) == 1362
    assert 100 <= sizes[1] <= 172  # 136 expected, of which the root of the variance is 11
