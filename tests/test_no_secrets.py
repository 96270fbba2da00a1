"""Secrets planted wherever a user may have them; then everything that is written is searched."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.end_to_end.conftest import World, tokenizer_folder, world
from wmtp import cli
from wmtp.config_check import load_settings
from wmtp.errors import ConfigError

__all__ = ["tokenizer_folder", "world"]  # fixtures

TOKEN = "hf_ThisIsTheTokenOfAUser0123456789"
PASSWORD = 'p@ss"word/with\\ev3rything'
QUOTED = "p%40ss%22word%2Fwith%5Cev3rything"
URI = "https://someone:hunter2hunter2@mlflow.invalid/api?access_token=tok_in_query_987654"
SECRETS = (TOKEN, PASSWORD, "hunter2hunter2", "tok_in_query_987654", QUOTED,
           json.dumps(PASSWORD)[1:-1], repr(PASSWORD)[1:-1])  # fmt: skip

Break = Callable[[World], None]


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        tree = tree.setdefault(key, {})
    tree[last] = value


def in_config(key: str, value: Any) -> Break:
    return lambda world: put(world.config, key, value)


def in_recipe(key: str, value: Any) -> Break:
    return lambda world: put(world.recipe, key, value)


def bad_data(world: World) -> None:
    path = world.folder / "secret.jsonl"
    rows = [{"text": f"x = {i}\n" * 9} for i in range(9)]
    lines = [json.dumps(row) for row in rows]
    path.write_text(
        "\n".join([*lines, json.dumps({"text": "a", TOKEN: 1, "reward": TOKEN})]) + "\n"
    )
    put(world.recipe, "data.train.sources", [str(path)])


def own_weighting(world: World) -> None:
    path = world.folder / "mine.py"
    path.write_text(
        "import os\nfrom wmtp.weighting import Weighting\n"
        "class Mine(Weighting):\n"
        "    scope = 'known'\n"
        "    def weights(self, signals): raise ValueError('cannot log in with ' + "
        "os.environ['MY_PASSWORD'])\n"
    )
    put(world.recipe, "weighting.algorithm", str(path))


BREAKS: dict[str, tuple[Break, int]] = {
    "nothing": (lambda world: None, 0),
    "a token as a number": (in_recipe("optim.lr", "${HF_TOKEN}"), 2),
    "a token as a name": (in_recipe("run.name", "a/${HF_TOKEN}"), 2),
    "a token as a word": (in_recipe("model.heads.kind", "${HF_TOKEN}"), 2),
    "a token as a tag": (in_recipe("run.tags", ["${HF_TOKEN}"]), 0),
    "a token as a key": (in_recipe(f"optim.{TOKEN}", 1), 2),
    "a password as a model": (in_config("paths.models.base", "/models/${MY_PASSWORD}"), 2),
    "a login as a model": (in_config("paths.models.base", URI), 2),
    "a login as data": (in_recipe("data.train.sources", [URI]), 2),
    "a login as a data set": (in_config("paths.datasets", {"mine": URI}), 0),
    "a login as a tokenizer": (in_recipe("data.tokenizer", URI), 2),
    "a token in an unset variable's default": (
        in_recipe("optim.lr", f"${{WMTP_NOT_SET:-{TOKEN}}}"), 2
    ),
    "a tracker that cannot be reached": (
        lambda world: world.config.update(mlflow={"enabled": True, "tracking_uri": URI}), 0
    ),
    "a bad line with a token": (bad_data, 0),
    "a weighting that tells a password": (own_weighting, 2),
    "a gradient that is not finite": (in_recipe("optim.lr", 10.0), 0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MY_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def type_it(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["wmtp", *arguments])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.mark.parametrize(
    ("name", "verbose"),
    [(n, v) for n, (_, code) in BREAKS.items() for v in ((False, True) if code else (False,))],
)
def test_no_secret_reaches_what_is_written(
    world: World, capfd: pytest.CaptureFixture[str], name: str, verbose: bool
) -> None:
    if name == "a tracker that cannot be reached":
        pytest.importorskip("mlflow")
    spoil, code = BREAKS[name]
    put(world.recipe, "train.max_steps", 1)
    put(world.recipe, "train.eval_interval", None)
    put(world.recipe, "data.eval.sources", [])
    spoil(world)
    config, recipe = world.write_files()
    found = type_it("train", "--config", config, "--recipe", recipe, *["--verbose"] * verbose)
    told = capfd.readouterr()
    assert found == code, told.err
    assert not leaks(told.out + told.err), told.err
    written = [path for path in world.runs.rglob("*") if path.is_file()]
    assert code or any(path.name == "run.yaml" for path in written)
    for path in written:
        content = path.read_bytes().decode("utf-8", "replace")
        # shards and the files of a tokenizer hold the user's data, which may say anything
        assert not leaks(content), path
        assert not leaks(str(path))


def test_the_exceptions_text_is_clean_for_a_caller_of_our_own(world: World) -> None:
    put(world.recipe, "run.name", f"a/{TOKEN}")
    with pytest.raises(ConfigError) as caught:
        load_settings(*world.write_files())
    assert not leaks(str(caught.value))
    assert not leaks(repr(caught.value))
    assert "***" in str(caught.value)


def test_a_secret_is_hidden_before_it_is_cut(world: World) -> None:
    """A value is shown in short: its beginning and end alone would tell a good part of it."""
    put(world.recipe, "optim.lr", "x" * 90 + TOKEN + "y" * 90)
    with pytest.raises(ConfigError) as caught:
        load_settings(*world.write_files())
    assert TOKEN[:8] not in str(caught.value)
    assert TOKEN[-8:] not in str(caught.value)


def test_a_fault_of_ours_is_shown_without_secrets() -> None:
    code = (
        "import sys, wmtp.cli\n"
        "def fail(*a, **k): raise RuntimeError('logging in with hunter2hunter2 failed')\n"
        "wmtp.cli.training.read_settings = fail\n"
        "sys.argv = ['wmtp', 'train', '--recipe', 'r.yaml']\n"
        "wmtp.cli.main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "RuntimeError: logging in with *** failed" in ran.stderr
    assert not leaks(ran.stderr)
