"""What can be known of a start before anything is loaded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wmtp.config import Model, Recipe, Settings
from wmtp.errors import ConfigError, WmtpError
from wmtp.model.hf_config import is_model_directory, read_config
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import TrunkKind
from wmtp.model.value_head import read_value_head_facts
from wmtp.opening.model_names import model_directory
from wmtp.weighting import find_critic

KEYS_WITH_A_BASE = frozenset({"kind", "heads", "final_norm_gain", "dropout"})
"""Keys of the recipe's model section that a pretrained start leaves open."""


def check_start(settings: Settings) -> None:
    """Check what the settings name without loading any of it.

    Raises:
        ConfigError: everything that is wrong, a line each: a model directory or a value head is
            missing, sizes are missing or out of place, keys do not go together.
    """
    faults = list(_faults(settings))
    if faults:
        raise ConfigError("\n".join(faults))


def _faults(settings: Settings) -> Iterator[str]:
    config, recipe = settings.config, settings.recipe
    models, critic = config.paths.models, find_critic(recipe.weighting)
    if critic is not None and critic.reward == "model" and models.rm is None:
        yield "weighting.reward is 'model': set paths.models.rm to the reward model's directory."
    if critic is not None and critic.value_head is not None:
        yield from _refusals(read_value_head_facts, Path(critic.value_head))
    if "reference_ce" in recipe.weighting.needs and models.ref is None:
        yield (
            f"weighting.algorithm {settings.algorithm} needs a reference model: set "
            "paths.models.ref to its directory (or export WMTP_REF with configs/local.yaml)."
        )
    base_is_there = False
    for key, path in (("base", models.base), ("ref", models.ref), ("rm", models.rm)):
        if path is not None:
            refused = list(_refusals(_check_directory, key, path))
            yield from refused
            base_is_there |= key == "base" and not refused
    if models.base is not None and base_is_there:
        directory = model_directory(models.base)
        yield from _refusals(check_length, directory, longest_row(recipe), recipe.model.kind)
    average_last, keep_last = recipe.train.average_last, config.paths.checkpoints.keep_last
    if average_last is not None and average_last > keep_last:
        yield (
            f"train.average_last is {average_last}, but paths.checkpoints.keep_last keeps only "
            f"{keep_last} checkpoints. Keep as many as are averaged."
        )
    yield from _faults_of_shape(recipe.model, models.base)


def _faults_of_shape(model: Model, base: str | None) -> Iterator[str]:
    """Too few sizes to start from scratch, or sizes beside a model that has its own."""
    if base is not None:
        default = type(model)()
        given = [
            f"model.{name}"
            for name in type(model).model_fields
            if name not in KEYS_WITH_A_BASE and getattr(model, name) != getattr(default, name)
        ]
        if given:
            yield (
                f"both a start and a shape are given: paths.models.base is '{base}', and the "
                f"recipe has {', '.join(given)}. Remove one of them (configs/local.yaml takes the "
                "start from WMTP_BASE)."
            )
        return
    sizes = {
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
    }
    missing = [f"model.{name}" for name, value in sizes.items() if value is None]
    if model.kind == "hf" and model.architecture is None:
        missing.insert(0, "model.architecture, such as gpt2")
    if missing:
        yield (
            "nothing to train: set paths.models.base to a model directory, or for a model from "
            f"scratch add {', '.join(missing)} to the recipe."
        )


def _refusals(check: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    """What a check says, if it refuses."""
    try:
        check(*arguments)
    except WmtpError as error:
        yield str(error)


def _check_directory(key: str, path: str) -> None:
    if not is_model_directory(model_directory(path)):
        raise ConfigError(
            f"paths.models.{key} is '{path}': no model directory (it has no config.json)."
        )


def check_length(directory: Path, longest: int, kind: TrunkKind | None = None) -> None:
    """Refuse rows that are longer than a model can read.

    Raises:
        ConfigError: says how many tokens it takes.
    """
    most = read_config(directory, kind).trunk.max_seq_length
    if longest > most:
        raise ConfigError(
            f"the model in '{directory}' reads at most {most} tokens at once, but the recipe has "
            f"rows of {longest}. Lower data.train.max_length and data.eval.max_length."
        )


def check_packing(model: MultiTokenModel, recipe: Recipe, name: str) -> None:
    """Refuse to pack documents into rows in which a trunk would mix them.

    Raises:
        ConfigError: says what to set.
    """
    longest = max(recipe.data.train.max_length, recipe.data.eval.max_length or 0)
    most = model.trunk.longest_packed_row
    if longest <= most or not recipe.data.train.pack_sequences:
        return
    reason = (
        f"in rows of {longest} tokens, only up to {most} (it looks back no further)"
        if most
        else "(it takes no mask or no positions for them)"
    )
    raise ConfigError(
        f"'{name}' cannot keep several documents of one row apart {reason}. "
        "Set data.train.pack_sequences: false"
        + (f", or data max_length to at most {most}." if most else ".")
    )


def longest_row(recipe: Recipe) -> int:
    """Tokens of the longest row, in training or evaluation, or in the critic's stage 1."""
    critic = find_critic(recipe.weighting)
    of_stage1 = 0 if critic is None else critic.stage1.max_length or 0
    return max(recipe.data.train.max_length, recipe.data.eval.max_length or 0, of_stage1)
