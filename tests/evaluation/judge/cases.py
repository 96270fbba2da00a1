"""Reads the collection of programs beside it; ``programs/README.md`` says how they are written."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmtp.evaluation import Case, Limits

FOLDER = Path(__file__).with_name("programs")


@dataclasses.dataclass(frozen=True)
class Expected:
    """A case and the statuses that it may end with; others where WebAssembly lacks something."""

    case: Case
    statuses: frozenset[str]
    in_wasm: frozenset[str]
    lacking: str

    @property
    def name(self) -> str:
        return str(self.case.name)


def read_collection(folder: Path, canary: Path, port: int) -> list[Expected]:
    """Every case of every file in a folder."""
    places = {"@CANARY@": str(canary), "@PORT@": str(port), "@PARENT@": str(os.getpid())}
    found: list[Expected] = []
    for path in sorted(folder.glob("*.cases")):
        text = path.read_text(encoding="utf-8")
        for place, value in places.items():
            text = text.replace(place, value)
        found += _cases(text, path.stem)
    names = [one.name for one in found]
    assert len(names) == len(set(names)), "two cases have the same name"
    return found


def _cases(text: str, file: str) -> Iterator[Expected]:
    for block in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        head, *sections = re.split(r"^--- (\w+)\n", block, flags=re.MULTILINE)
        name, *settings = head.strip().split("\n")
        said = dict(line.split(": ", 1) for line in settings)
        parts = dict(zip(sections[::2], sections[1::2], strict=True))
        statuses = frozenset(said.pop("expect").split())
        in_wasm, lacking = statuses, ""
        if "wasm" in said:
            words, lacking = said.pop("wasm").removesuffix(")").split(" (")
            in_wasm = frozenset(words.split())
        program = _in_form(parts["program"], said.pop("form", "").split())
        limits = _limits(said.pop("limits", ""))
        assert not said, f"{name}: {said}"
        case = Case(program, parts["tests"], "assert", limits, f"{file}/{name}") \
            if "tests" in parts else Case(
                program, [(parts["stdin"], parts["stdout"])], "stdio", limits, f"{file}/{name}"
            )  # fmt: skip
        yield Expected(case, statuses, in_wasm, lacking)


def _in_form(program: str, forms: list[str]) -> str:
    for form in forms:
        program = {"crlf": program.replace("\n", "\r\n"), "bom": "\ufeff" + program}[form]
    return program


def _limits(text: str) -> Limits:
    values: dict[str, Any] = {}
    for part in text.split():
        key, value = part.split("=")
        values[key] = float(value) if key == "seconds" else int(value)
    return Limits(**values)
