"""Sections of settings: typed, frozen, no unknown keys; and what a person is told of wrong ones."""

import difflib
import re
import reprlib
import types
import typing
from collections.abc import Callable, Set
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from wmtp.config_files import Document, Key, dotted
from wmtp.secrets import without_secrets

M = TypeVar("M", bound=BaseModel)

Explain = Callable[[type[BaseModel], Key], str | None]
"""What is to be said of a key that is not known, or of text that a pattern refuses; the model is
that of the whole document."""


class Section(BaseModel):
    """A part of the settings: frozen, typed, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def as_tuple(value: Any) -> Any:
    """YAML has lists, sections are frozen: before pydantic looks."""
    return tuple(value) if isinstance(value, list) else value


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside ``X``, ``X | None`` or ``tuple[X, ...]``, None if there is none."""
    while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        inner = [
            part for part in typing.get_args(annotation) if part not in (types.NoneType, Ellipsis)
        ]
        if not inner or typing.get_origin(annotation) is Literal:
            return None
        annotation = inner[0]
    return annotation


def _nothing_more(model: type[BaseModel], key: Key) -> str | None:
    return None


def check_section(
    model: type[M],
    document: Document,
    faults: list[str],
    prefix: Key = (),
    doubted: Set[Key] = frozenset(),
    explain: Explain = _nothing_more,
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
        explain: may say more of a key, and then in its own words.
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
            faults += _faults(model, document, detail, prefix, doubted, explain)
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
                faults += _faults(model, document, detail, prefix, left_out, explain)
    return None


def _faults(
    model: type[BaseModel],
    document: Document,
    detail: ErrorDetails,
    prefix: Key,
    doubted: Set[Key],
    explain: Explain,
) -> list[str]:
    """The lines of a fault, but for those on a key's neighbours where its own value is wrong."""
    lines = _fault(model, document, detail, prefix, explain).split("\n")
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


def _fault(
    model: type[BaseModel], document: Document, detail: ErrorDetails, prefix: Key, explain: Explain
) -> str:
    """One line: where, which key, what was found, what is allowed."""
    key: Key = detail["loc"]
    called = dotted((*prefix, *key))
    origin = document.origin(key)
    found = detail["input"]
    kind = detail["type"]
    allowed = detail.get("ctx", {})
    if kind == "extra_forbidden":
        if explained := explain(model, (*prefix, *key)):
            return f"{origin}: {explained}"
        siblings = _keys_of(model, key[:-1])
        return f"{origin}: {called}: no such key.{nearest(str(key[-1]), siblings)}"
    if kind == "missing":
        return f"{origin}: {called} is missing."
    if kind == "literal_error":
        options = str(allowed["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{origin}: {called} is {shown(found)}.{nearest(str(found), options)}"
    if kind == "bool_type":
        return f"{origin}: {called} is {shown(found)}. Allowed: true, false."
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{origin}: {called} is {shown(found)}, but a section with keys is expected."
    if kind == "value_error":
        told = str(allowed["error"]).split("\n")  # a section may have several faults
        return "\n".join(f"{origin}: {called + ': ' if called else ''}{line}." for line in told)
    if kind in ("too_short", "too_long"):
        least, most = allowed.get("min_length"), allowed.get("max_length")
        bound = f"at least {least} needed" if kind == "too_short" else f"at most {most} allowed"
        return f"{origin}: {called} has {allowed['actual_length']} usable values; {bound}."
    if kind == "tuple_type":
        example = f", as in [{found}]" if isinstance(found, str | int | float) else ""
        return f"{origin}: {called} is {shown(found)}, but a list is expected{example}."
    if kind == "string_pattern_mismatch":
        return f"{origin}: {called} is {shown(found)}. {explain(model, (*prefix, *key))}"
    message = detail["msg"].removeprefix("Input ").removeprefix("String ")
    hint = ""
    if kind in ("int_type", "float_type") and isinstance(found, str) and _NUMBER.fullmatch(found):
        hint = " Write it without quotes."
    listed = list(found) if isinstance(found, tuple) else found
    return f"{origin}: {called} is {shown(listed)}: it {message}.{hint}"


_NUMBER = re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxdict = 8


def shown(value: Any) -> str:
    """A value as Python writes it, short, and free of secrets before any of it is cut away."""
    return _SHORT.repr(without_secrets(value) if isinstance(value, str) else value)


def _keys_of(model: type[BaseModel], path: Key) -> list[str]:
    """The keys of the section at a path, for naming the nearest one."""
    section: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and section is not None:
            section = section_of(section.model_fields[part].annotation)
    return list(section.model_fields) if section is not None else []


def nearest(word: str, options: list[str]) -> str:
    """The option that a word comes closest to, and all of them."""
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{hint} Allowed: {', '.join(options)}." if options else hint
