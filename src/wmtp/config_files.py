"""From YAML files, profiles and ``--set`` to nested values that know where each key stood."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wmtp.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # aliases can make a short file expand without end
VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")

Key = tuple[str | int, ...]


@dataclass
class Document:
    """One half of the settings, as asked for and not yet checked."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
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

    def set(self, key: list[str], text: str, origin: str) -> None:
        """Put one value, written as in YAML, at a dotted key."""
        section = self.values
        for depth, part in enumerate(key[:-1]):
            inner = section.setdefault(part, {})
            if not isinstance(inner, dict):
                self.errors.append(f"{origin}: {'.'.join(key[: depth + 1])} is not a section.")
                return
            section = inner
        try:
            value = _value(text)
        except yaml.YAMLError:
            self.errors.append(f"{origin}: {text!r} is not a YAML value.")
            return
        section[key[-1]] = value
        self.origins[tuple(key)] = origin


class _CoreLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 3e-4 is a number; yes, on, 1:30 and 2026-11-21 are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_PATTERNS = {
    f"tag:yaml.org,2002:{name}": re.compile(pattern)
    for name, pattern in {
        "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
        "int": r"^[-+]?[0-9][0-9_]*$",
        "float": r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
        "null": r"^(?:~|null|Null|NULL|)$",
    }.items()
}
for _tag, _pattern in _PATTERNS.items():
    _CoreLoader.add_implicit_resolver(_tag, _pattern, None)


def read_yaml_file(path: str) -> Document:
    """Read one YAML file; what is wrong with it is collected in ``errors``.

    Raises:
        ConfigError: the file is absent or cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path}: cannot be read ({reason}).") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(data)} bytes is no settings file (at most {MAX_BYTES}).")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}).") from error
    return read_yaml(text, path)


def read_yaml(text: str, name: str) -> Document:
    """Read YAML text; ``name`` is how messages call it."""
    document = Document(origins={(): name})
    try:
        node = yaml.compose(text, _CoreLoader)
        if node is None:
            return document
        if not isinstance(node, yaml.MappingNode):
            document.errors.append(f"{name}: expected sections with keys.")
            return document
        for key, inner in _walk(node, (), name, document):
            document.origins[key] = f"{name}:{inner.start_mark.line + 1}"
        document.values = _construct(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = name if mark is None else f"{name}:{mark.line + 1}"
        document.readable = False
        document.errors.append(
            f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}"
        )
    except _TooLargeError:
        document.errors.append(f"{name}: expands to more than {MAX_NODES} values.")
    except RecursionError:
        document.errors.append(f"{name}: nested too deeply.")
    return document


class _TooLargeError(Exception):
    pass


def _walk(
    node: yaml.MappingNode, prefix: Key, name: str, document: Document
) -> Iterator[tuple[Key, yaml.Node]]:
    """Every key with its node; variables are replaced and duplicate keys noted on the way."""
    stack: list[tuple[Key, yaml.Node]] = [(prefix, node)]
    visited = 0
    while stack:
        key, current = stack.pop()
        visited += 1
        if visited > MAX_NODES:
            raise _TooLargeError
        if key:
            yield key, current
        if isinstance(current, yaml.MappingNode):
            seen: set[str] = set()
            for key_node, inner in current.value:
                part = str(key_node.value)
                if part in seen:
                    line = key_node.start_mark.line + 1
                    document.errors.append(
                        f"{name}:{line}: {_dotted((*key, part))} is given twice."
                    )
                seen.add(part)
                stack.append(((*key, part), inner))
        elif isinstance(current, yaml.SequenceNode):
            stack.extend(((*key, i), inner) for i, inner in enumerate(current.value))
        elif isinstance(current, yaml.ScalarNode) and "${" in current.value:
            _replace_variables(current, name, document)


def _replace_variables(node: yaml.ScalarNode, name: str, document: Document) -> None:
    line = node.start_mark.line + 1

    def value_of(match: re.Match[str]) -> str:
        variable, default = match["name"], match["default"]
        if variable in os.environ:
            return os.environ[variable]
        if default is None:
            document.errors.append(
                f"{name}:{line}: the environment variable {variable} is not set. "
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
    return "tag:yaml.org,2002:str"


def _construct(node: yaml.Node) -> dict[str, Any]:
    values: dict[str, Any] = _CoreLoader("").construct_document(node)
    return values


def _value(text: str) -> Any:
    return yaml.load(text, _CoreLoader)  # a SafeLoader with fewer resolvers


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)
