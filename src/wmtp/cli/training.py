"""``wmtp train``."""

from typing import Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import ConfigFile, Overrides, Profiles, RecipeFile, Verbose, read_settings


@app.command()
def train(
    recipe: RecipeFile,
    config: ConfigFile = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    tags: Annotated[str | None, typer.Option(help="Comma-separated, for the tracker.")] = None,
    profile: Profiles = None,
    override: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on from this checkpoint; alone, from the run's newest good one."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, try one micro-batch, keep nothing.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Train a model from a config and a recipe.

    Ctrl-C ends a step, saves and exits; --resume goes on from there. A resumed run equals one
    that never stopped to the last bit. Not promised: the same bits on another kind of device or
    number of ranks, with another version of torch, or with torch.compile switched on or off.
    """
    settings = read_settings(config, recipe, profile, override, run_name, tags)
    from wmtp.launch import launch, plan

    if dry_run:
        plan(settings)
        return
    raise typer.Exit(launch(settings, resume))
