"""A toy world: a text, a tokenizer, recipes for models of a few thousand parameters."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wmtp.cli import _with_resume_value, app
from wmtp.data.tokenizer import TextTokenizer
from wmtp.model.heads import HeadsShape
from wmtp.model.hf_layout import save_model
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import build_model
from wmtp.model.stored_config import SpecialTokens

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
        config, recipe = self.write_files()
        return self.run("train", "--config", config, "--recipe", recipe, "--run-name", name, *more)

    def write_files(self, ending: str = "") -> tuple[str, str]:
        """Write config and recipe as they stand; their paths."""
        paths = self.folder / f"config{ending}.yaml", self.folder / f"recipe{ending}.yaml"
        for path, values in zip(paths, (self.config, self.recipe), strict=True):
            path.write_text(yaml.safe_dump(values))
        return str(paths[0]), str(paths[1])


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


@pytest.fixture(scope="session")
def small_reference(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that reads the same tokens: any reference will do here."""
    folder = tmp_path_factory.mktemp("reference")
    tokenizer = TextTokenizer.load(tokenizer_folder)
    shape = LlamaShape(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1,
        num_heads=2, num_kv_heads=2, head_dim=8, max_seq_length=32, rope_theta=1e4,
        norm_eps=1e-5, tie_embeddings=True,
    )  # fmt: skip
    model = build_model(shape, HeadsShape(1), seed=1)
    save_model(model, folder, special_tokens=SpecialTokens(None, (tokenizer.eos_id,)))
    tokenizer.save(folder)
    return folder
