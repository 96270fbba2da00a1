"""From files to checked settings: all faults of all files told at once, each with its place."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wmtp.config import Config, Recipe, Settings
from wmtp.config_files import Document, Key, dotted, read_yaml_file
from wmtp.errors import ConfigError
from wmtp.secrets import redacted
from wmtp.sections import check_section, nearest, shown
from wmtp.weighting import ALGORITHMS, Weighting, find_weighting
from wmtp.weighting.baseline import Baseline

PATTERNS_IN_WORDS: dict[Key, str] = {
    ("run", "name"): "Use letters, digits and . _ -, beginning with a letter or digit.",
    ("train", "early_stopping", "monitor"): "Use eval/loss, or eval/ce/head_0 and so on.",
}

FORMER_KEYS: dict[Key, str] = {
    ("rho1",): "weighting (algorithm: rho1-wmtp)",
    ("critic",): "weighting (algorithm: critic-wmtp)",
    ("optimizer",): "optim",
    ("train", "algo"): "weighting.algorithm",
    ("algo",): "weighting.algorithm",
}


def load_settings(
    config_path: str | None,
    recipe_path: str,
    *,
    profiles: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
) -> Settings:
    """Read and check both files; later profiles and overrides win.

    Args:
        config_path: YAML file of the machine; None takes the defaults.
        recipe_path: YAML file of the experiment.
        profiles: partial configs laid over the config.
        overrides: ``recipe.optim.lr=3e-4``; the leading ``config.`` or ``recipe.`` may be left out.

    Raises:
        ConfigError: anything is wrong; the message has one line per fault.
    """
    config, faults = _read(config_path, "config")
    for profile in profiles:
        over, more = _read(profile, "profile")
        faults += more
        config.lay_over(over)
    recipe, more = _read(recipe_path, "recipe")
    faults += more
    for text in overrides:
        _override(config, recipe, text, faults)
    faults += config.errors + recipe.errors

    checked_config = check_section(Config, config, faults, explain=_explain)
    before = len(faults)
    weighting = _check_weighting(recipe, "weighting", Path(recipe_path).parent, faults)
    recipe.values["weighting"] = weighting
    stands_in: set[Key] = {("weighting",)} if len(faults) > before else set()
    checked_recipe = check_section(Recipe, recipe, faults, doubted=stands_in, explain=_explain)
    if faults or checked_config is None or checked_recipe is None:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return Settings(config=checked_config, recipe=checked_recipe)


FIXED_AT_START = ("recipe.model.", "recipe.data.tokenizer", "config.devices.seed")
"""What a resumed run cannot change: its checkpoint was made with it."""


def changes_since(run_file: Path, settings: Settings) -> list[str]:
    """Lines on what a resumed run does otherwise than it began; run.yaml says how it began.

    Raises:
        ConfigError: a key has changed that the checkpoint depends on.
    """
    before = _flat(read_yaml_file(str(run_file)).values)
    lines = []
    for key, now in _flat(redacted(settings.as_dict())).items():  # as run.yaml keeps them
        if key not in before or before[key] == now:
            continue
        if key.startswith(FIXED_AT_START):
            raise ConfigError(
                f"{key} is {now!r}, but the run began with {before[key]!r}. "
                "Put it back, or start anew with another --run-name."
            )
        lines.append(f"{key} is now {now!r}; the run began with {before[key]!r}")
    return lines


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _read(path: str | None, what: str) -> tuple[Document, list[str]]:
    if path is None:
        return Document(origins={(): f"--{what}"}), []
    try:
        return read_yaml_file(path), []
    except ConfigError as error:  # told together with the other file's faults
        return Document(origins={(): path}, readable=False), [str(error)]


def _override(config: Document, recipe: Document, text: str, faults: list[str]) -> None:
    name, equals, value = text.partition("=")
    key = name.strip().split(".")
    if not equals or not all(key):
        faults.append(f"--set {text}: write it as section.key=value.")
        return
    if key[0] in ("config", "recipe") and len(key) > 1:
        document, key = (config if key[0] == "config" else recipe), key[1:]
    elif key[0] in Config.model_fields:
        document = config
    elif key[0] in Recipe.model_fields:
        document = recipe
    else:
        known = [*Config.model_fields, *Recipe.model_fields]
        faults.append(f"--set {text}: no section {key[0]!r}.{nearest(key[0], known)}")
        return
    document.set(key, value, f"--set {text}")


def _check_weighting(
    document: Document, name: str, folder: Path, faults: list[str], prefix: Key = ()
) -> Weighting:
    """The weighting at a key, ``Baseline`` after a fault; one around another is built inside out.

    Args:
        document: the recipe, or the section of the weighting around this one.
        name: its key in the document.
        folder: where the recipe lies.
        faults: what is wrong is added here.
        prefix: where in the recipe the document begins.
    """
    fields = document.values.get(name)
    called = dotted((*prefix, name, "algorithm"))
    if not isinstance(fields, dict) or not isinstance(fields.get("algorithm"), str):
        if document.readable and not document.faulted & {(name,), (name, "algorithm")}:
            found = None if not isinstance(fields, dict) else fields.get("algorithm")
            what = "missing" if found is None else f"{shown(found)}, which is no name"
            faults.append(
                f"{document.origin((name, 'algorithm'))}: {called} is {what}. "
                f"Use {', '.join(sorted(ALGORITHMS))}, or the path of a .py file of your own."
            )
        return Baseline()
    try:
        kind = find_weighting(fields["algorithm"], folder, key=called)
    except ConfigError as error:
        faults.append(f"{document.origin((name, 'algorithm'))}: {error}")
        return Baseline()
    section = Document(
        values={key: value for key, value in fields.items() if key != "algorithm"},
        origins={(): document.origin((name,))}
        | {key[1:]: place for key, place in document.origins.items() if key[:1] == (name,)},
        faulted={key[1:] for key in document.faulted if key[:1] == (name,)},
    )
    prefix = (*prefix, name)
    for key, field in kind.model_fields.items():
        if field.annotation is Weighting and key in section.values:
            section.values[key] = _check_weighting(section, key, folder, faults, prefix)
    return check_section(kind, section, faults, prefix, explain=_explain) or Baseline()


def _explain(model: type[BaseModel], key: Key) -> str | None:
    """What a key was called before, in which file it belongs, or which text it takes."""
    if key in PATTERNS_IN_WORDS:
        return PATTERNS_IN_WORDS[key]
    called = dotted(key)
    if key in FORMER_KEYS:
        return f"{called} is now called {FORMER_KEYS[key]}."
    for other, name in ((Config, "config"), (Recipe, "recipe")):
        if called in other.model_fields and model in (Config, Recipe):
            return f"{called} belongs in the file that --{name} names."
    return None
