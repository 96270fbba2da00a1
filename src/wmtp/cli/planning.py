"""``wmtp plan``."""

from typing import Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import (
    ConfigFile,
    Overrides,
    Profiles,
    RecipeFile,
    Verbose,
    read_settings,
)
from wmtp.errors import ConfigError


@app.command()
def plan(
    recipe: RecipeFile,
    config: ConfigFile = None,
    profile: Profiles = None,
    override: Overrides = None,
    device: Annotated[
        str | None, typer.Option("--device", help="mps, cuda or cpu; default: the config's.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1e6, help="GB of the Mac, the GPU or the machine; default: ask it."
        ),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="Time there is: refuse a longer run.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure", help="Time a few steps, if this machine has the device."
        ),
    ] = True,
    verbose: Verbose = False,
) -> None:
    """Predict a run's memory by part and its time, and refuse what does not fit.

    Memory is predicted without loading a model, for any device. Time is measured: it needs the
    device, the data and the model.
    """
    if device not in (None, "cuda", "mps", "cpu"):
        raise ConfigError(f"--device is {device!r}. Use cuda, mps or cpu.")
    if device is not None:
        override = [*(override or []), f"config.devices.compute_backend={device}"]
    settings = read_settings(config, recipe, profile, override)
    from wmtp.launch import plan_ahead

    plan_ahead(settings, memory=memory, hours=hours, measure=measure)
