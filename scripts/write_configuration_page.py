"""Write docs/configuration.md from the schema, so that the page cannot lie.

python scripts/write_configuration_page.py
"""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from wmtp.config import Config, Recipe, SourceSpec
from wmtp.sections import section_of
from wmtp.weighting import ALGORITHMS, Weighting

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

INTRODUCTION = """# Configuration

Written from the schema by `scripts/write_configuration_page.py`; a test holds it to the code.

Two YAML files: `--config` is the machine, `--recipe` the experiment. Every section refuses
unknown keys and names the nearest valid one; all faults of both files are told at once, before
any weight is loaded. `--profile FILE` lays a partial config over the config,
`--set recipe.optim.lr=3e-4` replaces one value (`recipe.` or `config.` may be left out), and
`${NAME:-default}` reads the environment. Paths are relative to the working directory.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, model in (("Config: the machine", Config), ("Recipe: the experiment", Recipe)):
        parts.append(f"\n## {title}\n\n| key | values | default | |\n|---|---|---|---|")
        parts.extend(rows(model, ""))
    parts.append(
        "\n## A data source\n\n"
        "An entry of `sources`: a path, or a section with these keys.\n\n"
        "| key | values | default | |\n|---|---|---|---|"
    )
    parts.extend(rows(SourceSpec, ""))
    for name, kind in ALGORITHMS.items():
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        parts.append(f"\n## weighting: `{name}`\n\n{summary}\n")
        if kind.model_fields:
            parts.append("| key | values | default | |\n|---|---|---|---|")
            parts.extend(rows(kind, "weighting."))
    return "\n".join(parts) + "\n"


def rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Table rows of a section and, after it, of the sections inside it."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and inner is not SourceSpec and not issubclass(inner, Weighting):
            yield from rows(inner, f"{prefix}{name}.")
        else:
            yield (
                f"| `{prefix}{name}` | {values(field)} | {default(field)} "
                f"| {field.description or ''} |"
            )


def values(field: FieldInfo) -> str:
    """What may be written, with bounds."""
    words = [kind(field.annotation)]
    for bound, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        words += [f"{sign} {m[bound]:g}" for m in _bounds(field) if bound in m]
    return " ".join(words)


def _bounds(field: FieldInfo) -> Iterator[dict[str, Any]]:
    for item in field.metadata:
        yield {key: getattr(item, key) for key in ("gt", "ge", "lt", "le") if hasattr(item, key)}


def kind(annotation: Any) -> str:
    """A type in a user's words."""
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(
            f"`{str(v).lower() if isinstance(v, bool) else v}`" for v in typing.get_args(annotation)
        )
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        return f"{kind(inner[0])} or `null`"
    if typing.get_origin(annotation) is typing.Annotated:
        return kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        inner = section_of(annotation)
        return "list of sources" if inner else f"list of {kind(typing.get_args(annotation)[0])}"
    names = {bool: "true, false", int: "integer", float: "number", str: "text"}
    return names.get(annotation, "see below")


def default(field: FieldInfo) -> str:
    """The default, as it would be written in YAML."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE)
