"""A grid is trained, evaluated and compared, and goes on where it stopped."""

import contextlib
import io
import shutil
from collections.abc import Sequence

import pytest
import yaml

from wmtp.comparison import grid

from .conftest import World


def test_a_grid_trains_what_is_missing_and_compares_all(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands run in this process, which saves the time that importing takes."""

    def in_this_process(arguments: Sequence[str], name: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            world.run(*arguments)

    monkeypatch.setattr(grid, "_wmtp", in_this_process)
    world.recipe["train"] = {"max_steps": 2, "eval_interval": 2}
    (world.folder / "uniform.yaml").write_text(yaml.safe_dump(world.recipe))
    (world.folder / "config.yaml").write_text(yaml.safe_dump(world.config))
    out = world.folder / "grid"
    command = [
        "compare", "--grid", str(world.folder / "uniform.yaml"), "--controls", "next-token",
        "--config", str(world.folder / "config.yaml"), "--seeds", "1", "--out", str(out),
        "--data", str(world.folder / "held_out.txt"), "--html", str(world.folder / "page.html"),
    ]  # fmt: skip
    world.run(*command)
    told = capsys.readouterr()
    assert told.err.count(": trains") == told.err.count("is evaluated") == 2
    assert "ce/head_0" in told.out
    assert "| next-token " in told.out
    assert "<table>" in (world.folder / "page.html").read_text()

    shutil.rmtree(out / "next-token-seed0" / "evaluation")
    world.run(*command)
    again = capsys.readouterr()
    assert again.err.count("is there") == again.err.count("is evaluated") == 1
    assert ": trains" not in again.err
    assert again.out == told.out
