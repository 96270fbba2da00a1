"""The collection of hostile and awkward programs: every one judged as expected, nothing harmed."""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from wmtp.evaluation import STATUSES, Judge
from wmtp.evaluation.sandbox.isolation import BUBBLEWRAP, KERNEL, Isolation

from .cases import FOLDER, Expected, read_collection


def unexpected(judge: Judge, collection: list[Expected], workers: int) -> list[str]:
    expected = {one.name: one.statuses for one in collection}
    wrong = []
    for case, verdict in judge.judge_many((one.case for one in collection), workers):
        if verdict.status not in expected.pop(str(case.name)):
            wrong.append(f"{case.name}: {verdict.status}: {verdict.detail}")
    return wrong + [f"{name}: no verdict" for name in expected]


@pytest.mark.slow
def test_every_program_is_judged_as_expected_and_nothing_is_harmed(
    judge: Judge, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("canary")
    before = canary.stat()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        collection = read_collection(FOLDER, canary, listener.getsockname()[1])
        assert len(collection) >= 60
        assert {status for one in collection for status in one.statuses} <= set(STATUSES)
        assert not unexpected(judge, collection, workers=2)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    after = canary.stat()
    assert canary.read_text() == "canary"
    assert (before.st_mtime_ns, before.st_mode) == (after.st_mtime_ns, after.st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]


@pytest.mark.skipif(os.environ.get("WMTP_JUDGE_CHECK") != "full", reason="make judge-check")
@pytest.mark.parametrize(
    "isolation",
    [replace(KERNEL, layers=KERNEL.layers - {"namespaces"}), BUBBLEWRAP],
    ids=["without namespaces", "bubblewrap"],
)
def test_other_isolations_judge_alike(isolation: Isolation, tmp_path: Path) -> None:
    if isolation is BUBBLEWRAP and not shutil.which("bwrap"):
        pytest.skip("no bwrap here")
    (tmp_path / "canary").write_text("canary")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Judge(isolations=[isolation]) as other,
    ):
        port = listener.getsockname()[1]
        assert not unexpected(other, read_collection(FOLDER, tmp_path / "canary", port), 2)


def test_a_wrong_expectation_is_noticed(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "one.cases").write_text(
        "=== right\nexpect: failed\n--- program\ndef f(x): return 2\n--- tests\nassert f(1) == 2\n"
    )
    collection = read_collection(tmp_path, tmp_path / "canary", 1)
    assert unexpected(judge, collection, 1) == ["one/right: passed: "]
