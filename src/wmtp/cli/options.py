"""Options that several commands have, and what becomes of them."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from wmtp.errors import ConfigError

if TYPE_CHECKING:
    from wmtp.config import Settings
    from wmtp.data.sources import Source

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file of this machine.")]
RecipeFile = Annotated[str, typer.Option("--recipe", help="YAML file of the experiment.")]
Profiles = Annotated[
    list[str] | None, typer.Option("--profile", help="Partial config laid over the config.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="One key, as in recipe.optim.lr=3e-4.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")]
Texts = Annotated[
    list[str],
    typer.Option(
        "--source",
        help="File, folder, python-stdlib, or ORG/NAME of the Hugging Face hub; may be repeated.",
    ),
]
Split = Annotated[
    str, typer.Option(help="all, train or validation; for MBPP also test and prompt.")
]
Format = Annotated[
    str,
    typer.Option("--format", help="auto, mbpp, humaneval, contest, jsonl, text or tree."),
]
ModelDirectory = Annotated[
    Path, typer.Option("--model", help="Hugging Face directory, such as runs/NAME/final.")
]
Backend = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.")]
TokenizerPath = Annotated[str, typer.Option("--tokenizer", help="tokenizer.json or its folder.")]


def read_settings(
    config: str | None,
    recipe: str,
    profile: list[str] | None,
    override: list[str] | None,
    run_name: str | None = None,
    tags: str | None = None,
) -> "Settings":
    """Read both files; what torch reads when it is imported is set before it is."""
    from wmtp.config_files import read_yaml_file
    from wmtp.runtime.environment import set_environment_before_torch

    mps: dict[str, Any] = {}
    for path in [config, *(profile or [])]:
        with contextlib.suppress(ConfigError):  # load_settings tells it with all other faults
            section = read_yaml_file(path).values.get("mps_optimizations") if path else None
            if isinstance(section, dict):  # other types are told by load_settings, too
                mps.update({k: v for k, v in section.items() if isinstance(v, bool | int | float)})
    for text in override or []:
        name, _, written = text.partition("=")
        section, _, key = name.strip().removeprefix("config.").partition(".")
        if section == "mps_optimizations":
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.safe_load(written)
                mps.update({key: value} if isinstance(value, bool | int | float) else {})
    set_environment_before_torch(
        mps_fallback_to_cpu=mps.get("fallback_to_cpu"),
        mps_high_watermark=mps.get("high_watermark"),
        mps_low_watermark=mps.get("low_watermark"),
    )

    from wmtp.config_check import load_settings

    overrides = list(override or [])
    if run_name is not None:
        overrides.append(f"recipe.run.name={json.dumps(run_name)}")
    if tags is not None:
        overrides.append(f"recipe.run.tags={json.dumps([t for t in tags.split(',') if t])}")
    return load_settings(config, recipe, profiles=tuple(profile or ()), overrides=tuple(overrides))


def make_sources(
    paths: list[str], split: str, data_format: str, solutions: str = "correct"
) -> "tuple[Source, ...]":
    """What is to be read, checked as far as can be without reading it."""
    from wmtp.data.sources import make_source

    return tuple(make_source(path, split, data_format, solutions) for path in paths)


def check_model_directory(model: Path) -> None:
    """Refuse a folder without a model, before torch is imported for it."""
    from wmtp.model.hf_config import is_model_directory

    if not is_model_directory(model):
        raise ConfigError(
            f"--model is '{model}': no model directory (it has no config.json). Give a folder such "
            "as runs/NAME/final."
        )


def device_named(backend: str) -> Any:
    """The device that ``--device`` names."""
    from wmtp.runtime.environment import set_environment_before_torch

    set_environment_before_torch()
    from wmtp.runtime.device import choose_device

    if backend not in ("auto", "cuda", "mps", "cpu"):
        raise ConfigError(f"--device is {backend!r}. Use auto, cuda, mps or cpu.")
    return choose_device(backend, "fp32")  # type: ignore[arg-type]  # checked above


def note(text: str) -> None:
    """Tell what is no result, on standard error."""
    print(text, file=sys.stderr)
