"""From files to checked settings: all faults of all files told at once, each with its place."""

import difflib
import re
import reprlib
from collections.abc import Set
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wmtp.config import Config, Recipe, Settings, section_of
from wmtp.config_files import Document, Key, dotted, read_yaml_file
from wmtp.errors import ConfigError
from wmtp.secrets import redacted, without_secrets
from wmtp.weighting import ALGORITHMS, Weighting, find_weighting
from wmtp.weighting.baseline import Baseline

M = TypeVar("M", bound=BaseModel)

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

    checked_config = _check(Config, config, faults)
    before = len(faults)
    weighting = _check_weighting(recipe, "weighting", Path(recipe_path).parent, faults)
    recipe.values["weighting"] = weighting
    stands_in: set[Key] = {("weighting",)} if len(faults) > before else set()
    checked_recipe = _check(Recipe, recipe, faults, doubted=stands_in)
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
        faults.append(f"--set {text}: no section {key[0]!r}.{_nearest(key[0], known)}")
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
            what = "missing" if found is None else f"{_shown(found)}, which is no name"
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
    return _check(kind, section, faults, prefix) or Baseline()


def _check(
    model: type[M],
    document: Document,
    faults: list[str],
    prefix: Key = (),
    doubted: Set[Key] = frozenset(),
) -> M | None:
    """The checked section, None after a fault.

    What keys have to do with each other is only looked at where each is right by itself. So the
    wrong ones are taken out and the rest is checked again, for what does not speak of them.

    Args:
        model: what the section must be.
        document: its values and where they come from.
        faults: what is wrong is added here.
        prefix: where in the file the document begins.
        doubted: keys of whose neighbours nothing is said either: their values are not the user's.
    """
    if not document.readable:
        return None
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        details = error.errors(include_url=False)
    places = {detail["loc"] for detail in details}
    for detail in details:
        key = detail["loc"]
        inside = any(len(other) > len(key) and other[: len(key)] == key for other in places)
        told = any(key[:length] in document.faulted for length in range(1, len(key) + 1))
        # a list is too short for pydantic where its only entry is wrong, which is told
        if not told and not (inside and detail["type"] == "too_short"):
            faults += _faults(model, document, detail, prefix, doubted)
    left_out = set(doubted)
    while wrong := {_path(detail["loc"]) for detail in details} - left_out - {()}:
        left_out |= wrong
        try:
            model.model_validate(_without(document.values, left_out - doubted))
            break
        except ValidationError as error:
            details = error.errors(include_url=False)
        for detail in details:
            if detail["type"] == "value_error":
                faults += _faults(model, document, detail, prefix, left_out)
    return None


def _faults(
    model: type[BaseModel], document: Document, detail: ErrorDetails, prefix: Key, doubted: Set[Key]
) -> list[str]:
    """The lines of a fault, but for those on a key's neighbours where its own value is wrong."""
    lines = _fault(model, document, detail, prefix).split("\n")
    if detail["type"] != "value_error":
        return lines
    return [line for line in lines if not _speaks_of(doubted, line)]


def _path(key: Key) -> Key:
    """Up to the list that the key may lie in."""
    names = [isinstance(part, str) for part in key]
    return key[: names.index(False)] if False in names else key


def _without(values: Any, keys: set[Key]) -> Any:
    """A copy of nested sections that lacks some keys."""
    if not isinstance(values, dict):
        return values
    return {
        name: _without(value, {key[1:] for key in keys if key[:1] == (name,)})
        for name, value in values.items()
        if (name,) not in keys
    }


def _speaks_of(keys: Set[Key], line: str) -> bool:
    words = set(re.findall(r"\w+", line.partition(": ")[2]))
    return any(str(key[-1]) in words for key in keys)


def _fault(model: type[BaseModel], document: Document, detail: ErrorDetails, prefix: Key) -> str:
    """One line: where, which key, what was found, what is allowed."""
    key: Key = detail["loc"]
    called = dotted((*prefix, *key))
    origin = document.origin(key)
    found = detail["input"]
    kind = detail["type"]
    allowed = detail.get("ctx", {})
    if kind == "extra_forbidden":
        former = FORMER_KEYS.get((*prefix, *key))
        if former:
            return f"{origin}: {called} is now called {former}."
        for other, name in ((Config, "config"), (Recipe, "recipe")):
            if called in other.model_fields and model in (Config, Recipe):
                return f"{origin}: {called} belongs in the file that --{name} names."
        siblings = _keys_of(model, key[:-1])
        return f"{origin}: {called}: no such key.{_nearest(str(key[-1]), siblings)}"
    if kind == "missing":
        return f"{origin}: {called} is missing."
    if kind == "literal_error":
        options = str(allowed["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{origin}: {called} is {_shown(found)}.{_nearest(str(found), options)}"
    if kind == "bool_type":
        return f"{origin}: {called} is {_shown(found)}. Allowed: true, false."
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{origin}: {called} is {_shown(found)}, but a section with keys is expected."
    if kind == "value_error":
        told = str(allowed["error"]).split("\n")  # a section may have several faults
        return "\n".join(f"{origin}: {called + ': ' if called else ''}{line}." for line in told)
    if kind in ("too_short", "too_long"):
        least, most = allowed.get("min_length"), allowed.get("max_length")
        bound = f"at least {least} needed" if kind == "too_short" else f"at most {most} allowed"
        return f"{origin}: {called} has {allowed['actual_length']} usable values; {bound}."
    if kind == "tuple_type":
        example = f", as in [{found}]" if isinstance(found, str | int | float) else ""
        return f"{origin}: {called} is {_shown(found)}, but a list is expected{example}."
    if kind == "string_pattern_mismatch":
        return f"{origin}: {called} is {_shown(found)}. {PATTERNS_IN_WORDS[(*prefix, *key)]}"
    message = detail["msg"].removeprefix("Input ").removeprefix("String ")
    hint = ""
    if kind in ("int_type", "float_type") and isinstance(found, str) and _NUMBER.fullmatch(found):
        hint = " Write it without quotes."
    shown = list(found) if isinstance(found, tuple) else found
    return f"{origin}: {called} is {_shown(shown)}: it {message}.{hint}"


_NUMBER = re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxdict = 8


def _shown(value: Any) -> str:
    """A value as Python writes it, short, and free of secrets before any of it is cut away."""
    return _SHORT.repr(without_secrets(value) if isinstance(value, str) else value)


def _keys_of(model: type[BaseModel], path: Key) -> list[str]:
    """The keys of the section at a path, for naming the nearest one."""
    section: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and section is not None:
            section = section_of(section.model_fields[part].annotation)
    return list(section.model_fields) if section is not None else []


def _nearest(word: str, options: list[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{hint} Allowed: {', '.join(options)}." if options else hint
