"""What is done with the folder of a run: ``wmtp average`` and ``wmtp sync``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import Verbose
from wmtp.errors import ConfigError


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/NAME.")],
    last: Annotated[int, typer.Option(min=1, help="How many of its newest good checkpoints.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN/average if absent.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write the mean of a run's last models as a model directory."""
    from wmtp.average import AVERAGE_NAME, average_checkpoints, newest_good_checkpoints
    from wmtp.runtime.lock import hold_run_lock
    from wmtp.runtime.run_folder import RunFolder

    folder = RunFolder(run.resolve())
    if not folder.checkpoints.is_dir():
        raise ConfigError(
            f"'{run}' is no run folder (it has no checkpoints/). Give a folder such as runs/NAME."
        )
    target = out or run / AVERAGE_NAME
    with hold_run_lock(folder.lock_file, folder.name):  # training removes old checkpoints
        chosen, refused = newest_good_checkpoints(folder.checkpoints, last)
        for bad, reason in refused:
            print(f"warning: checkpoint {bad.name} {reason}: not used", file=sys.stderr)
        average_checkpoints(chosen, target)
    print(f"{target}: mean of {', '.join(path.name for path in chosen)}")


@app.command()
def sync(
    run: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/NAME.")],
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow's, instead of the run's; with its login.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Send the trackers of a run what they were not sent while it trained."""
    from wmtp.runtime.environment import set_environment_before_torch

    set_environment_before_torch()
    from wmtp.runtime.lock import hold_run_lock
    from wmtp.runtime.run_folder import RunFolder
    from wmtp.sync import sync as send_what_is_missing

    folder = RunFolder(run.resolve())
    if not folder.settings_file.is_file():
        raise ConfigError(f"'{run}' is no run folder (it has no run.yaml). Give one as runs/NAME.")
    with hold_run_lock(folder.lock_file, folder.name):
        send_what_is_missing(folder, tracking_uri, print)
