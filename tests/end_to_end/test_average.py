import json

import pytest

from .conftest import World


def test_the_mean_of_a_run_continues_a_text(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.train("mean")
    run = world.runs / "mean"
    world.run("average", str(run), "--last", "2")
    assert json.loads((run / "average" / "average.json").read_text()) == {
        "mean_of": ["step-00000004", "step-00000008"]
    }
    capsys.readouterr()
    model = str(run / "average")
    world.run("generate", "--model", model, "--prompt", "def", "--max-new-tokens", "4")
    assert "4 tokens in" in capsys.readouterr().err
