"""A small run made of nothing: data, tokenizer and recipe, to try a machine with.

Nothing is downloaded and nothing is random, so that what is found differs with the machine alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from wmtp.config import Settings
from wmtp.config_check import load_settings
from wmtp.data.tokenizer_training import train_tokenizer

Trial = Literal["baseline", "rho1 weighted", "rho1 token_skip", "critic"]
"""Which of the four algorithms."""

WEIGHTINGS: Mapping[Trial, Mapping[str, Any]] = {
    "baseline": {"algorithm": "baseline-mtp"},
    "rho1 weighted": {"algorithm": "rho1-wmtp", "mode": "weighted"},
    "rho1 token_skip": {"algorithm": "rho1-wmtp", "mode": "token_skip"},
    "critic": {
        "algorithm": "critic-wmtp",
        "stage1": {"max_steps": 4, "batch_size": 4, "max_length": 48, "eval_interval": 2},
    },
}
VOCABULARY = 300


@dataclass(frozen=True)
class Size:
    """How large the model and its micro-batches are.

    Attributes:
        vocab_size: of the model; None as many as the tokenizer has.
        architecture: of transformers, such as gpt2; None for our own trunk.
    """

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int | None = None
    length: int = 64
    rows: int = 4
    accumulation: int = 1
    horizon: int = 4
    heads: str = "sequential"
    architecture: str | None = None

    def recipe_model(self) -> dict[str, Any]:
        """The recipe's section ``model``."""
        sizes: dict[str, Any] = {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "heads": {"horizon": self.horizon, "kind": self.heads},
        }
        if self.architecture is None:
            sizes["num_kv_heads"] = self.num_kv_heads
        else:
            sizes |= {"kind": "hf", "architecture": self.architecture}
        return sizes if self.vocab_size is None else sizes | {"vocab_size": self.vocab_size}


TINY = Size()


def programs() -> Iterator[dict[str, Any]]:
    """Right and wrong programs of eight problems, as data with a reward."""
    for problem in range(8):
        for attempt in range(24):
            right = attempt % 2 == 0
            operation = "+" if right else "-"
            yield {
                "prompt": f"def add_{problem}(a, b):\n",
                "completion": f"    return a {operation} b + {problem} * {attempt}\n"
                + ("# right\n" if right else "# wrong\n"),
                "is_correct": right,
                "group": f"problem {problem}",
            }


def write_data(folder: Path) -> None:
    """Write ``programs.jsonl`` and a tokenizer of its texts."""
    rows = list(programs())
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "programs.jsonl").write_text(text, encoding="utf-8")
    texts = (str(row["prompt"]) + str(row["completion"]) for row in rows)
    train_tokenizer(texts, VOCABULARY).save(folder / "tokenizer")


def trial_settings(
    folder: Path,
    trial: Trial = "baseline",
    *,
    size: Size = TINY,
    steps: int = 10,
    backend: str = "auto",
    precision: str = "fp32",
    reference: Path | None = None,
    mlflow: bool = False,
    checkpointing: bool = False,
    compiled: bool = False,
) -> Settings:
    """Settings of a run on the data that ``write_data`` wrote, read as a user's files are.

    Args:
        folder: where the data are, and the run folders will be.
        trial: which algorithm.
        size: of model and micro-batch.
        steps: optimizer steps; every one is logged, the last one saved.
        backend: ``devices.compute_backend``.
        precision: ``devices.mixed_precision``.
        reference: model directory, for rho1.
        mlflow: track the run in a store beside it.
        checkpointing: ``train.gradient_checkpointing``.
        compiled: ``devices.use_torch_compile``.
    """
    config = {
        "devices": {
            "compute_backend": backend,
            "mixed_precision": precision,
            "use_torch_compile": compiled,
        },
        "paths": {
            "models": {"ref": None if reference is None else str(reference)},
            "checkpoints": {"base_path": str(folder), "save_interval": steps},
        },
        "mlflow": {"enabled": mlflow},
        "log_interval": 1,
    }
    recipe = {
        "run": {"name": trial.replace(" ", "-")},
        "model": size.recipe_model(),
        "data": {
            "tokenizer": str(folder / "tokenizer"),
            "train": {
                "sources": [str(folder / "programs.jsonl")],
                "max_length": size.length,
                "batch_size": size.rows,
                "mask_prompt": False,
            },
        },
        "weighting": dict(WEIGHTINGS[trial]),
        "train": {
            "max_steps": steps,
            "gradient_accumulation": size.accumulation,
            "gradient_checkpointing": checkpointing,
        },
        "optim": {"lr": 3e-3, "scheduler": "constant"},
    }
    paths = folder / "config.yaml", folder / "recipe.yaml"
    for path, values in zip(paths, (config, recipe), strict=True):
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_settings(str(paths[0]), str(paths[1]))
