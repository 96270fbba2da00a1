"""The recipes that are killed: each algorithm, with and without workers."""

from pathlib import Path
from typing import Any

from .harness import Toy, make_toy, programs_and_rewards


def baseline(folder: Path, config: Any, recipe: Any) -> None:
    """Nothing but the toy as it is."""


def two_workers(folder: Path, config: Any, recipe: Any) -> None:
    recipe["data"]["train"]["num_workers"] = 2


def saving_behind(folder: Path, config: Any, recipe: Any) -> None:
    """Checkpoints are written by a thread while training goes on."""
    config["paths"]["checkpoints"]["asynchronous"] = True


def ranks(folder: Path, config: Any, recipe: Any) -> None:
    """Copied unless told otherwise; a row is logged every other step, so that sums last."""
    config["log_interval"] = 2


def rho1(folder: Path, config: Any, recipe: Any) -> None:
    """The reference's cross-entropy is computed at each step, or cached by ``make_scenario``."""
    recipe["weighting"] = {"algorithm": "rho1-wmtp"}
    config["paths"]["models"] = {"ref": "reference"}


def token_skip(folder: Path, config: Any, recipe: Any) -> None:
    rho1(folder, config, recipe)
    recipe["weighting"]["mode"] = "token_skip"


def critic(folder: Path, config: Any, recipe: Any) -> None:
    """A stage 1 of nearly as many steps as there are behind it."""
    path = programs_and_rewards(folder)
    recipe["data"]["rewards"] = {"sources": [path]}
    recipe["data"]["train"] |= {"sources": [path], "mask_prompt": False}
    stage1 = {"max_steps": 30, "batch_size": 4, "max_length": 48, "eval_interval": 7}
    recipe["weighting"] = {"algorithm": "critic-wmtp", "stage1": stage1}


def much_text(folder: Path, config: Any, recipe: Any) -> None:
    """Several seconds to tokenize."""
    text = (folder / "text.txt").read_text()
    (folder / "text.txt").write_text(text * 1000)


CHANGES = {
    "much text": much_text,
    "baseline": baseline,
    "two workers": two_workers,
    "saving behind": saving_behind,
    "ranks": ranks,
    "rho1": token_skip,
    "rho1 cached": rho1,
    "critic": critic,
}


def make_scenario(folder: Path, name: str) -> Toy:
    """The toy of a name, with what its recipe needs."""
    toy = make_toy(folder, CHANGES[name])
    if name.startswith("rho1"):
        small = ["model.hidden_size=16", "model.num_layers=1", "model.heads.horizon=1",
                 "weighting={algorithm: baseline-mtp}", "train.max_steps=3"]  # fmt: skip
        more = [option for key in small for option in ("--set", f"recipe.{key}")]
        more += ["--set", "recipe.train.num_epochs=null", "--set", "config.paths.models={}"]
        made = toy.programs.fork(*toy.arguments("reference", *more))
        assert made.wait() == 0, made.said
        (folder / "reference").symlink_to(toy.runs / "reference" / "final")
    if name == "rho1 cached":
        files = ("--config", "config.yaml", "--recipe", "recipe.yaml")
        scored = toy.programs.fork("data", "score", *files)
        assert scored.wait() == 0, scored.said
    return toy
