"""What is done with the folders of runs: ``wmtp average``, ``wmtp sync``, ``wmtp compare``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import ConfigFile, Overrides, Split, Verbose, note
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


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or what evaluate --out wrote; with --grid recipes."),
    ],
    grid: Annotated[
        bool, typer.Option("--grid", help="Train and evaluate these recipes first.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    config: ConfigFile = None,
    override: Overrides = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="With --grid: text to evaluate on.")
    ] = None,
    split: Split = "all",
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="With --grid: tokens per row or window of the evaluation."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --grid: runs of each recipe.")] = 3,
    controls: Annotated[
        str, typer.Option(help="With --grid: next-token, shuffled, random_matched.")
    ] = "",
    out: Annotated[Path, typer.Option(help="With --grid: where run folders go.")] = Path(
        "runs/grid"
    ),
    verbose: Verbose = False,
) -> None:
    """Put runs side by side: intervals, paired tests, and what cannot be told apart.

    The first is what the others are compared with. Runs that differ in their seed alone are one
    group. A grid goes on where it stopped.
    """
    from wmtp.comparison.grid import cells, run_grid
    from wmtp.comparison.page import as_page, as_text, tables
    from wmtp.comparison.pairs import compare as compare_runs
    from wmtp.comparison.results import read_run
    from wmtp.runtime.durable import replace_file, storage_errors

    if grid:
        if not data:
            raise ConfigError("--grid needs --data: the text that all runs are evaluated on.")
        named = [name.strip() for name in controls.split(",") if name.strip()]
        options = ["--split", split, *(part for one in data for part in ("--data", one))]
        # models of other context lengths would be measured on other rows, and not be compared
        options += [] if max_length is None else ["--max-length", str(max_length)]
        place = None if config is None else Path(config)
        runs = run_grid(cells(runs, named, seeds), out, place, override or [], options, note)
    elif len(runs) < 2:
        raise ConfigError("one run is nothing to compare. Give two or more.")
    read = [read_run(path) for path in runs]
    found = tables(read, compare_runs(read))
    if not found:
        raise ConfigError(
            "these runs have no figure in common. Evaluate them on the same data: wmtp evaluate "
            "--model RUN/final --data TEXT --out RUN/evaluation."
        )
    print(as_text(found))
    if html is not None:
        with storage_errors(f"{html} could not be written"):
            replace_file(html, as_page(found).encode())
        print(html, file=sys.stderr)
