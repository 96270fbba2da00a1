"""Trains and evaluates recipes, with controls and several seeds; goes on where it stopped."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from wmtp.comparison.results import EVALUATION_FOLDER, RESULT_NAME
from wmtp.config_files import read_yaml_file
from wmtp.errors import ConfigError
from wmtp.runtime.durable import storage_errors

Control = Literal["next-token", "shuffled", "random_matched"]
CONTROLS: Final[tuple[Control, ...]] = ("next-token", "shuffled", "random_matched")


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: of its run folder.
        recipe: the file.
        overrides: what makes it another run than the recipe's, as ``key=value``.
    """

    name: str
    recipe: Path
    overrides: tuple[str, ...]


def cells(recipes: Sequence[Path], controls: Sequence[str], seeds: int) -> list[Cell]:
    """Every recipe, then its controls, for each seed.

    ``shuffled`` and ``random_matched`` are put around every weighting that is not uniform;
    ``next-token`` is the first recipe with one head and uniform weights.

    Raises:
        ConfigError: a recipe cannot be read, a control is not known, two recipes have one name.
    """
    for control in controls:
        if control not in CONTROLS:
            raise ConfigError(f"control is '{control}': use {', '.join(CONTROLS)}.")
    kinds: dict[str, tuple[Path, tuple[str, ...]]] = {}
    for path in recipes:
        weighting = read_yaml_file(str(path)).values.get("weighting") or {}
        if path.stem in kinds:
            raise ConfigError(f"two recipes are called {path.stem}: rename one.")
        kinds[path.stem] = (path, ())
        if weighting.get("algorithm", "baseline-mtp") in ("baseline-mtp", *CONTROLS):
            continue
        for control in controls:
            if control != "next-token":
                around = json.dumps({"algorithm": control, "around": weighting})
                kinds[f"{path.stem}-{control}"] = (path, (f"recipe.weighting={around}",))
    if "next-token" in controls:
        uniform = ("recipe.model.heads.horizon=1", 'recipe.weighting={"algorithm": "baseline-mtp"}')
        kinds["next-token"] = (recipes[0], uniform)
    return [
        Cell(f"{stem}-seed{seed}", path, (*overrides, f"config.devices.seed={seed}"))
        for seed in range(seeds)
        for stem, (path, overrides) in kinds.items()
    ]


def run_grid(
    grid: Sequence[Cell],
    folder: Path,
    config: Path | None,
    overrides: Sequence[str],
    evaluation: Sequence[str],
    say: Callable[[str], None],
) -> list[Path]:
    """Train and evaluate what is not there yet.

    Args:
        grid: from ``cells``.
        folder: where run folders go.
        config: of this machine.
        overrides: ``key=value`` for every run.
        evaluation: options of ``wmtp evaluate``.
        say: takes a line on what is done.

    Returns:
        The run folders.

    Raises:
        ConfigError: a run failed; it has told why itself.
        StorageError: the folder could not be made.
    """
    with storage_errors(f"{folder} could not be created"):
        folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for number, cell in enumerate(grid, start=1):
        run = folder / cell.name
        runs.append(run)
        place = f"{number}/{len(grid)} {cell.name}"
        if (run / EVALUATION_FOLDER / RESULT_NAME).is_file():
            say(f"{place}: is there")
            continue
        if not (run / "final").is_dir():
            say(f"{place}: trains")
            command = ["train", "--recipe", str(cell.recipe), "--run-name", cell.name]
            command += [] if config is None else ["--config", str(config)]
            place_of_runs = f"config.paths.checkpoints.base_path={folder}"
            for override in (*overrides, *cell.overrides, place_of_runs):
                command += ["--set", override]
            _wmtp(command + (["--resume"] if run.exists() else []), cell.name)
        say(f"{place}: is evaluated")
        out = str(run / EVALUATION_FOLDER)
        _wmtp(["evaluate", "--model", str(run / "final"), "--out", out, *evaluation], cell.name)
    return runs


def _wmtp(arguments: Sequence[str], name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "wmtp", *arguments], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise ConfigError(
            f"{name} ended with exit code {done.returncode}: see above. The same command goes on "
            "with what is left."
        )
