"""From YAML files, profiles and ``--set`` to nested values that know where each key stood."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wmtp.errors import ConfigError
from wmtp.untrusted import read_bounded

MAX_BYTES = 1 << 18
MAX_NODES = 20_000  # aliases can make a short file expand without end
MAX_DEPTH = 32
MAX_DIGITS = 40
_TOO_DEEP = f": nested too deeply (at most {MAX_DEPTH} levels)."
VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")

Key = tuple[str | int, ...]


@dataclass
class Document:
    """One half of the settings, as asked for and not yet checked."""

    values: Any = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    faulted: set[Key] = field(default_factory=set)
    """Keys that ``errors`` has told of, with an empty value in ``values``."""
    readable: bool = True
    """False where nothing more can be said, because nothing of it could be read."""

    def origin(self, key: Key) -> str:
        """Where a key, or else the nearest section around it, was written."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        return "settings"

    def lay_over(self, other: "Document") -> None:
        """Let another document's keys replace these, section by section."""
        _merge(self.values, other.values)
        self.origins.update(other.origins)
        self.errors.extend(other.errors)
        self.faulted |= other.faulted

    def set(self, key: list[str], text: str, origin: str) -> None:
        """Put one value, written as in YAML, at a dotted key."""
        section = self.values
        for depth, part in enumerate(key[:-1]):
            inner = section.setdefault(part, {})
            if not isinstance(inner, dict):
                self.errors.append(f"{origin}: {'.'.join(key[: depth + 1])} is not a section.")
                return
            section = inner
        value = read_yaml(text, origin, at=tuple(key))
        self.errors.extend(value.errors)
        self.faulted |= value.faulted
        if value.readable:
            section[key[-1]] = value.values
            for length in range(1, len(key)):  # sections that no file has
                self.origins.setdefault(tuple(key[:length]), origin)
            self.origins[tuple(key)] = origin


class _CoreLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 3e-4 is a number; yes, on, 1:30 and 2026-11-21 are text."""

    depth = 0
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Stop going down long before Python would, which takes seconds to say so."""
        self.depth += 1
        if self.depth > MAX_DEPTH + 2:
            raise _RefusedError(_TOO_DEEP)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_PATTERNS = {
    f"tag:yaml.org,2002:{name}": re.compile(pattern)
    for name, pattern in {
        "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
        "int": r"^[-+]?[0-9]+(?:_[0-9]+)*$",
        "float": r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "null": r"^(?:~|null|Null|NULL|)$",
    }.items()
}
for _tag, _pattern in _PATTERNS.items():
    _CoreLoader.add_implicit_resolver(_tag, _pattern, None)

_TEXT = "tag:yaml.org,2002:str"
_VALUES: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    "tag:yaml.org,2002:null": lambda text: None,
    _TEXT: str,
}
"""How a plain value is read; nothing else than these is ever made of a file."""

_COLLECTIONS: dict[type[yaml.Node], str] = {
    yaml.MappingNode: "tag:yaml.org,2002:map",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
}


def read_yaml_file(path: str) -> Document:
    """Read one YAML file; what is wrong with it is collected in ``errors``.

    Raises:
        ConfigError: the file is absent or cannot be read.
    """
    try:
        data = read_bounded(Path(path), MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or "unknown"
        raise ConfigError(f"{path}: cannot be read ({reason}).") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text (byte {error.start}).") from error
    return read_yaml(text, path)


def read_yaml(text: str, name: str, at: Key = ()) -> Document:
    """Read YAML text.

    Args:
        text: of a whole file, which must be a mapping, or of the value of one key.
        name: how messages call it.
        at: the key; then ``values`` is its value, of whatever type.
    """
    document = Document(origins={(): name})
    try:
        node = yaml.compose(text, _CoreLoader)
        if node is None and not at:
            return document
        if not isinstance(node, yaml.MappingNode) and not at:
            raise _RefusedError(": expected sections with keys.")
        if isinstance(node, yaml.MappingNode) and not at and (fault := _fault_of(node)):
            raise _RefusedError(fault)
        if node is None:
            node = yaml.ScalarNode("tag:yaml.org,2002:null", "")
        for key, inner in _walk(node, at, name, document):
            document.origins[key] = _place(name, inner, at)
        document.values = _construct(node)
    except yaml.YAMLError as error:
        document.readable = False
        document.errors.append(_yaml_fault(text, name, error, at))
    except _RefusedError as refused:
        document.readable = False
        document.errors.append(f"{name}{refused}")
    return document


class _RefusedError(Exception):
    """Why nothing of a text is used."""


def _place(name: str, node: yaml.Node, at: Key) -> str:
    """File and line; a value of ``--set`` has no lines worth naming."""
    return name if at else f"{name}:{node.start_mark.line + 1}"


def _yaml_fault(text: str, name: str, error: yaml.YAMLError, at: Key) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{name}:{line}: not valid YAML: the character {chr(error.character)!r} is not text."
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    place = name if mark is None or at else f"{name}:{mark.line + 1}"
    said = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
    written = text.splitlines()[mark.line : mark.line + 1] if mark is not None else []
    hint = " Put ${...} in quotes inside braces." if any("${" in line for line in written) else ""
    return f"{place}: not valid YAML: {said}.{hint}"


def _walk(
    node: yaml.Node, prefix: Key, name: str, document: Document
) -> Iterator[tuple[Key, yaml.Node]]:
    """Every key with its node; variables are replaced, and what cannot be used is noted."""
    stack: list[tuple[Key, yaml.Node]] = [(prefix, node)]
    visited = 0
    while stack:
        key, current = stack.pop()
        visited += 1
        if visited > MAX_NODES:
            raise _RefusedError(f": expands to more than {MAX_NODES} values.")
        if len(key) > MAX_DEPTH:
            raise _RefusedError(_TOO_DEEP)
        if key:
            yield key, current
        if isinstance(current, yaml.ScalarNode) and "${" in current.value:
            _replace_variables(current, key, _place(name, current, prefix), document)
        fault = _fault_of(current)
        if fault:
            document.faulted.add(key)
            document.errors.append(f"{_place(name, current, prefix)}: {dotted(key)}{fault}")
        elif isinstance(current, yaml.MappingNode):
            inner = _keys_of(current, key, name, document, prefix)
            stack.extend(((*key, part), value) for part, value in inner)
        elif isinstance(current, yaml.SequenceNode):
            stack.extend(((*key, i), inner) for i, inner in enumerate(current.value))


def _keys_of(
    node: yaml.MappingNode, key: Key, name: str, document: Document, prefix: Key
) -> list[tuple[str, yaml.Node]]:
    """The keys of a section that are words, each once."""
    found: dict[str, yaml.Node] = {}
    for key_node, inner in node.value:
        place = _place(name, key_node, prefix)
        if not isinstance(key_node, yaml.ScalarNode):
            document.errors.append(
                f"{place}: {dotted(key) or 'the file'} has a list or section as a key; "
                "a key is one word."
            )
            continue
        part = key_node.value
        if part in found:
            document.errors.append(f"{place}: {dotted((*key, part))} is given twice.")
        found[part] = inner
    return list(found.items())


def _fault_of(node: yaml.Node) -> str | None:
    """What is wrong with a value that somebody tagged, or with a number."""
    if not isinstance(node, yaml.ScalarNode):
        return None if node.tag == _COLLECTIONS[type(node)] else _strange_tag(node.tag)
    if node.tag not in _VALUES:
        return _strange_tag(node.tag)
    if node.tag != _TEXT and not _PATTERNS[node.tag].match(node.value):
        return f" is {node.value[:80]!r}, which is no {node.tag.rpartition(':')[2]}."
    if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
        return f" is a number of {len(node.value)} digits; at most {MAX_DIGITS} are read."
    return None


def _strange_tag(tag: str) -> str:
    short = tag.replace("tag:yaml.org,2002:", "!!")[:80]
    return f" has the YAML tag {short}; settings are text, numbers, true, false, lists, sections."


def _replace_variables(node: yaml.ScalarNode, key: Key, place: str, document: Document) -> None:
    def value_of(match: re.Match[str]) -> str:
        variable, default = match["name"], match["default"]
        if variable in os.environ:
            return os.environ[variable]
        if default is None:
            document.faulted.add(key)
            document.errors.append(
                f"{place}: the environment variable {variable} is not set. "
                f"Set it, or write ${{{variable}:-default}}."
            )
            return ""
        return default

    node.value = VARIABLE.sub(value_of, node.value)
    if node.style is None:  # unquoted: "${STEPS:-100}" is a number again
        node.tag = _tag_of_plain(node.value)


def _tag_of_plain(text: str) -> str:
    for tag, pattern in _PATTERNS.items():
        if pattern.match(text):
            return tag
    return _TEXT


def _construct(node: yaml.Node) -> Any:
    """The value of a node that ``_walk`` has passed, so at most so deep; None after a fault."""
    if _fault_of(node):
        return None
    if isinstance(node, yaml.MappingNode):
        pairs = ((key, inner) for key, inner in node.value if isinstance(key, yaml.ScalarNode))
        return {key.value: _construct(inner) for key, inner in pairs}
    if isinstance(node, yaml.SequenceNode):
        return [_construct(inner) for inner in node.value]
    return _VALUES[node.tag](node.value)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def dotted(key: Key) -> str:
    r"""A key as messages write it; what would not stand on a line is quoted and cut.

    Example:
        >>> dotted(("data", "sources", 0)), dotted(("run", "a\nb"))
        ('data.sources.0', "run.'a\\nb'")
    """
    return ".".join(_part(str(part)) for part in key)


def _part(part: str) -> str:
    short = part if len(part) <= 80 else f"{part[:77]}..."
    return short if short.isprintable() else repr(short)
