"""A toy world: a text, a tokenizer, recipes for models of a few thousand parameters."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wmtp.cli import _with_resume_value, app

TEXT = "\n".join(
    f"def add_{i}(a, b):\n    return a + b + {i}\n\n\nprint(add_{i}({i}, {2 * i}))"
    for i in range(60)
)


class World:
    """A folder with settings, and the command line in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        (folder / "text.txt").write_text(TEXT)
        (folder / "held_out.txt").write_text(TEXT[: len(TEXT) // 8].replace("add", "sum"))
        self.config: dict[str, Any] = {
            "devices": {"compute_backend": "cpu"},
            "paths": {"checkpoints": {"base_path": str(self.runs), "save_interval": 4}},
            "mlflow": {"enabled": False},
            "log_interval": 1,
        }
        self.recipe: dict[str, Any] = {
            "model": {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 2,
                "heads": {"horizon": 3},
            },
            "data": {
                "tokenizer": str(folder / "tokenizer"),
                "train": {"sources": [str(folder / "text.txt")], "max_length": 24, "batch_size": 2},
                "eval": {"sources": [str(folder / "held_out.txt")]},
            },
            "weighting": {"algorithm": "baseline-mtp"},
            "train": {"max_steps": 8, "gradient_accumulation": 2, "eval_interval": 4},
            "optim": {"lr": 0.01, "warmup_steps": 2},
        }

    def run(self, *arguments: str) -> int:
        """Run a command in this process; the exit code, errors of ours raised."""
        code = app(_with_resume_value(list(arguments)), standalone_mode=False)
        return code or 0

    def train(self, name: str, *more: str) -> int:
        """Train the recipe as it stands."""
        for file, values in (("config.yaml", self.config), ("recipe.yaml", self.recipe)):
            (self.folder / file).write_text(yaml.safe_dump(values))
        files = ["--config", str(self.folder / "config.yaml"), "--recipe"]
        recipe = str(self.folder / "recipe.yaml")
        return self.run("train", *files, recipe, "--run-name", name, *more)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(TEXT)
    app(
        ["tokenizer", "train", "--source", str(folder / "text.txt"), "--vocab-size", "300",
         "--out", str(folder / "tokenizer")],
        standalone_mode=False,
    )  # fmt: skip
    return folder / "tokenizer"


@pytest.fixture
def world(tmp_path: Path, tokenizer_folder: Path) -> World:
    world = World(tmp_path)
    (tmp_path / "tokenizer").symlink_to(tokenizer_folder)
    return world
