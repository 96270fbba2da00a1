"""Where a run keeps what it makes."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from wmtp.errors import ConfigError
from wmtp.runtime.durable import replace_file, storage_errors
from wmtp.secrets import redacted

_RUN_NAME = re.compile(r"\w[\w.+=-]{0,99}")


@final
@dataclass(frozen=True)
class RunFolder:
    """The paths of one run.

    <base path>/<run name>/
      run.yaml            the effective config + recipe + versions + seed
      train.log           what the console said
      bad_lines.jsonl     every line or file of the data that could not be used, and why
      metrics.jsonl       one JSON object per logged step
      samples.jsonl       texts that the model wrote while it trained, if asked for
      checkpoints/        step-00000100/ and so on
      final/              the model directory users take away
      average/            the mean of the last checkpoints, if asked for
      bad_step.json       what the step read that ended the run, if it diverged
      stage1/             of critic-wmtp: a run of its own, whose final/ is the value head
      tensorboard/        if enabled
      tracking/           how far the trackers have come
    """

    root: Path

    @property
    def name(self) -> str:
        """The run's name, as the user gave it."""
        return self.root.name

    @property
    def settings_file(self) -> Path:
        """The effective settings of the run."""
        return self.root / "run.yaml"

    @property
    def log_file(self) -> Path:
        """What the console said, with times."""
        return self.root / "train.log"

    @property
    def bad_lines_file(self) -> Path:
        """What of the data could not be used."""
        return self.root / "bad_lines.jsonl"

    @property
    def metrics_file(self) -> Path:
        """The truth about what was measured; trackers are fed from it."""
        return self.root / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        """What the model wrote while it trained."""
        return self.root / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def final(self) -> Path:
        """The model directory that users take away."""
        return self.root / "final"

    @property
    def average(self) -> Path:
        """The mean of the last checkpoints."""
        return self.root / "average"

    @property
    def stage1(self) -> "RunFolder":
        """Where the value head of critic-wmtp is trained before the model."""
        return RunFolder(self.root / "stage1")

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def tracking(self) -> Path:
        """The trackers' run ids and cursors."""
        return self.root / "tracking"

    @property
    def bad_step_file(self) -> Path:
        """What the first step read whose gradient was not finite, if a run ended for that."""
        return self.root / "bad_step.json"

    @property
    def ranks_lock_file(self) -> Path:
        """Held by all processes of a run of several ranks."""
        return self.root / ".lock-ranks"

    @property
    def status_file(self) -> Path:
        """How the last session ended, in MLflow's words, for who tells the trackers later."""
        return self.tracking / "status"

    @property
    def lock_file(self) -> Path:
        """Held by the process that writes this run."""
        return self.root / ".lock"

    @property
    def places(self) -> tuple[Path, ...]:
        """Every folder in which files and folders are written under a temporary name first."""
        return (self.root, self.checkpoints, self.tracking, self.stage1.root)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write run.yaml, without secrets.

        Raises:
            StorageError: the disk refused.
        """
        text = yaml.safe_dump(redacted(settings), sort_keys=False, allow_unicode=True)
        with storage_errors(f"{self.settings_file} could not be written"):
            replace_file(self.settings_file, text.encode())


def create_run_folder(base_path: Path, name: str) -> RunFolder:
    """Make the folder of a new run.

    Raises:
        ConfigError: the name cannot be one folder's name, or a run of that name exists.
        StorageError: the folder cannot be made.
    """
    run = RunFolder(_checked_path(base_path, name))
    if _holds_anything(run):
        raise ConfigError(
            f"run '{name}' already exists in {run.root}. "
            "Continue it with --resume, or choose another --run-name."
        )
    _make_folders(run)
    return run


def open_run_folder(base_path: Path, name: str, *, kept_elsewhere: bool = False) -> RunFolder:
    """Find the folder of a run that is to be resumed.

    Args:
        base_path: folder of all run folders.
        name: of the run.
        kept_elsewhere: the run is to be brought here, so that an empty folder will do.

    Raises:
        ConfigError: there is no such run; names the nearest one there is.
    """
    run = RunFolder(_checked_path(base_path, name))
    if not (kept_elsewhere or _holds_anything(run) or run.settings_file.is_file()):
        names = [path.parent.name for path in base_path.glob("*/run.yaml")]
        names = [other for other in names if other != name]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"run '{name}' cannot be resumed: {run.root} holds no run.{hint} "
            "Leave --resume out to start it."
        )
    _make_folders(run)
    return run


def _checked_path(base_path: Path, name: str) -> Path:
    if not _RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"run name is '{name}': it must be one folder name of at most 100 letters, digits "
            "and . _ + = -, beginning with a letter or digit."
        )
    path = base_path / name
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run '{name}' cannot be stored: {path} is a file, not a folder.")
    return path


def _holds_anything(run: RunFolder) -> bool:
    """A start that failed before its first logged step left nothing worth protecting."""
    for rows in (run.metrics_file, run.stage1.metrics_file):
        if rows.exists() and rows.stat().st_size > 0:
            return True
    folders = (run.checkpoints, run.final, run.stage1.checkpoints, run.stage1.final)
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def _make_folders(run: RunFolder) -> None:
    with storage_errors(f"{run.root} could not be created"):
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.tracking.mkdir(exist_ok=True)
