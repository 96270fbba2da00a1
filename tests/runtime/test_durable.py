import os
import time
from pathlib import Path

import pytest

from wmtp.runtime.durable import replace_file, temporary_beside

TWO_DAYS_AGO = time.time() - 2 * 86_400


def test_what_was_left_is_removed_a_day_later(tmp_path: Path) -> None:
    target = tmp_path / "shards[1]"
    for name in (".tmp-shards[1]-5", ".tmp-shards[1]-6", ".tmp-shards[1]-7", ".tmp-other-5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.bin").write_text("x")
    for name in (".tmp-shards[1]-5", ".tmp-other-5"):
        os.utime(tmp_path / name / "tokens.bin", (TWO_DAYS_AGO, TWO_DAYS_AGO))
    for name in (".tmp-shards[1]-5", ".tmp-shards[1]-6", ".tmp-other-5"):  # 6 is still written to
        os.utime(tmp_path / name, (TWO_DAYS_AGO, TWO_DAYS_AGO))
    assert temporary_beside(target).name == f".tmp-shards[1]-{os.getpid()}"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".tmp-shards[1]-6", ".tmp-shards[1]-7", ".tmp-other-5"}


def test_a_link_that_was_left_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    link = tmp_path / ".tmp-a-5"
    link.symlink_to("precious")
    os.utime(link, (TWO_DAYS_AGO, TWO_DAYS_AGO), follow_symlinks=False)
    os.utime(tmp_path / "precious" / "file", (TWO_DAYS_AGO, TWO_DAYS_AGO))
    temporary_beside(tmp_path / "a")
    assert not link.is_symlink()
    assert (tmp_path / "precious" / "file").exists()


def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "a", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}
