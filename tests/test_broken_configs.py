"""Broken settings, made from the schema itself: a new key is covered without a word here.

Each breaks one key, and is to be told on one line: file, line, dotted key, and what is allowed.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tests.test_config import CONFIG, RECIPE, with_value, write
from wmtp.config import Config, Recipe, SourceSpec
from wmtp.config_check import load_settings
from wmtp.errors import ConfigError
from wmtp.sections import section_of
from wmtp.weighting import ALGORITHMS, Weighting

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Broken:
    """One key with a value that it cannot have.

    Attributes:
        file: ``config`` or ``recipe``.
        key: where the value goes.
        value: what is wrong.
        told: what the line must say besides file, line and key; one of them is enough.
        base: the recipe that is broken.
    """

    file: str
    key: Path_
    value: Any
    told: tuple[str, ...]
    base: str = "rho1-wmtp"

    def __str__(self) -> str:
        return f"{self.base}-{'.'.join(self.key)}-{str(self.value)[:20]}"


def plain(algorithm: str) -> dict[str, Any]:
    """A weighting with the keys that it cannot do without."""
    kind = ALGORITHMS[algorithm]
    if "around" in kind.model_fields:
        return {"algorithm": algorithm, "around": {"algorithm": "rho1-wmtp"}}
    return {"algorithm": algorithm}


def fields_of(model: type[BaseModel], path: Path_ = ()) -> Iterator[tuple[Path_, FieldInfo]]:
    """Every key that is a value and not a section, with its place."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None or inner is SourceSpec:
            yield (*path, name), field
        elif inner is not Weighting:
            yield from fields_of(inner, (*path, name))


def types_of(annotation: Any) -> set[Any]:
    """The types that a value may have, None among them where it may be empty."""
    if isinstance(annotation, type):
        return {annotation}
    if get_origin(annotation) is Literal:
        return {Literal}
    if get_origin(annotation) is tuple:
        return {tuple}
    if get_origin(annotation) is dict:
        return {dict}
    return set().union(*(types_of(part) for part in get_args(annotation) or ()))


def options_of(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(option for part in get_args(annotation) for option in options_of(part))


def constraint(field: FieldInfo, kind: type, name: str) -> Any:
    found = [getattr(item, name) for item in field.metadata if isinstance(item, kind)]
    return found[0] if found else None


def broken_values(field: FieldInfo) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Values that a key cannot have, each with what must be told about it."""
    kinds = types_of(field.annotation)
    section = ("section with keys", "valid string", "valid integer", "valid number", "list",
               "Allowed: ", "Use letters")  # fmt: skip
    yield {"a": 1} if dict not in kinds else {"a": [1]}, section
    if type(None) not in kinds and tuple not in kinds:
        yield None, (*section, "valid boolean")
    if tuple not in kinds:
        yield ["a", "b"], section
    else:
        yield 3, ("a list is expected",)
        yield [{"a": 1}], ("valid string", "valid number", "missing", "no such key")
        yield None if type(None) not in kinds else "word", ("a list is expected",)
    if Literal in kinds:
        options = ", ".join(map(str, options_of(field.annotation)))
        yield "no-such-word", (f"Allowed: {options}",)
    if bool in kinds:
        yield "yes", ("Allowed: true, false",)
        yield 1, ("Allowed: true, false",)
    if str in kinds and Literal not in kinds:
        yield 7, ("valid string",)
    if kinds & {int, float}:
        yield "many", ("valid integer", "valid number")
        yield "3", ("Write it without quotes",)
        yield True, ("valid integer", "valid number")
        yield math.nan, ("finite", "valid integer")
        yield math.inf, ("finite", "valid integer")
        yield -math.inf, ("finite", "valid integer")
    if int in kinds:
        yield 2.5, ("valid integer",)
        yield 10**30, ("less than",)
        yield -(10**30), ("greater than",)
    for bound, name, beyond in (
        (annotated_types.Ge, "ge", -1), (annotated_types.Gt, "gt", 0),
        (annotated_types.Le, "le", 1), (annotated_types.Lt, "lt", 0),
    ):  # fmt: skip
        limit = constraint(field, bound, name)
        if limit is not None:
            yield limit + beyond, ("less than" if name[0] == "l" else "greater than",)


def all_broken() -> Iterator[Broken]:
    for file, model in (("config", Config), ("recipe", Recipe)):
        for key, field in fields_of(model):
            yield from (Broken(file, key, value, told) for value, told in broken_values(field))
            misspelled = (*key[:-1], f"{key[-1]}x")
            yield Broken(file, misspelled, 1, (f"Did you mean {key[-1]}?",))
    for name, kind in ALGORITHMS.items():
        for key, field in fields_of(kind):
            place = ("weighting", *key)
            for value, told in broken_values(field):
                yield Broken("recipe", place, value, told, name)
            yield Broken("recipe", (*place[:-1], f"{key[-1]}x"), 1,
                         (f"Did you mean {key[-1]}?",), name)  # fmt: skip


ALL = list(all_broken())


SMALLEST: dict[str, Any] = {
    "data": {"train": {"sources": ["text.txt"]}},
    "train": {"max_steps": 5},
}


def recipe_of(algorithm: str) -> dict[str, Any]:
    return {**SMALLEST, "weighting": plain(algorithm)}


def yaml_of(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=yaml.CSafeDumper)


def faults_of(folder: Path, config: Any, recipe: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(*write(folder, yaml_of(config), yaml_of(recipe)))
    return str(caught.value).split("\n")


def test_there_are_many() -> None:
    assert len(ALL) > 500
    assert len({broken.key for broken in ALL}) > 100


def test_each_broken_value_is_told_with_file_line_key_and_what_is_allowed(tmp_path: Path) -> None:
    """One test, for speed; all that fail are shown."""
    wrong = []
    for broken in ALL:
        files = {"config": {}, "recipe": recipe_of(broken.base)}
        files[broken.file] = with_value(files[broken.file], broken.key, broken.value)
        try:
            found = faults_of(tmp_path, **files)
        except pytest.fail.Exception:
            wrong.append(f"{broken}: accepted")
            continue
        dotted = ".".join(broken.key)
        # a whole section may be refused in one line for what its keys are together
        lines = [line for line in found if f"{broken.file}.yaml:" in line and dotted in line]
        if not any(word in line for line in lines for word in broken.told):
            wrong.append(f"{broken}: {found}")
        if any(len(line) > 600 for line in found) or len(found) > 4:
            wrong.append(f"{broken}: too much: {found}")
    assert not wrong, "\n".join(wrong)


def test_a_broken_key_of_a_weighting_around_another_is_told(tmp_path: Path) -> None:
    for around in ("shuffled", "random_matched"):
        for key, field in fields_of(ALGORITHMS["critic-wmtp"]):
            value, told = next(iter(broken_values(field)))
            inner = with_value({"algorithm": "critic-wmtp"}, key, value)
            outer = {"algorithm": around, "around": {"algorithm": "shuffled", "around": inner}}
            found = faults_of(tmp_path, CONFIG, {**RECIPE, "weighting": outer})
            dotted = ".".join(("weighting", "around", "around", *key))
            assert any(dotted in line and any(t in line for t in told) for line in found), found


def test_one_fault_in_every_section_is_told_with_all_others(tmp_path: Path) -> None:
    keys = {}
    for file, model in (("config", Config), ("recipe", Recipe)):
        for key, _ in fields_of(model):
            keys[file, key[:-1]] = (*key[:-1], "no_such_key")
    files = {"config": CONFIG, "recipe": recipe_of("critic-wmtp")}
    for (file, _), key in keys.items():
        files[file] = with_value(files[file], key, 1)
    files["recipe"] = with_value(files["recipe"], ("weighting", "stage1", "no_such_key"), 1)
    found = faults_of(tmp_path, **files)
    assert len(found) == len(keys) + 1
    for key in keys.values():
        assert sum(f": {'.'.join(key)}: no such key" in line for line in found) == 1, key


REST = (
    "data: {train: {sources: [x.txt]}}\nweighting: {algorithm: baseline-mtp}\n"
    "train: {max_steps: 1}\n"
)
TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "recipe.yaml: weighting.algorithm is missing. Use baseline-mtp, column"),
    "nothing but a comment": (b"# x\n", "recipe.yaml: data is missing"),
    "null": (b"~\n", "recipe.yaml: expected sections with keys"),
    "a number": (b"3\n", "recipe.yaml: expected sections with keys"),
    "a list": (b"- a\n", "recipe.yaml: expected sections with keys"),
    "two documents": (REST.encode() + b"---\na: 1\n", "recipe.yaml:4: not valid YAML"),
    "a tab": (REST.encode() + b"run:\n\tname: a\n", "recipe.yaml:5: not valid YAML"),
    "a control character": (b"run: {name: \"a\x01\"}\n", "recipe.yaml:1: not valid YAML: the char"),
    "NUL": (b"run: \0\n", "recipe.yaml:1: not valid YAML"),
    "Latin-1": (b"run:\n  name: \xe4\n", "recipe.yaml:2: not UTF-8 text (byte 13)"),
    "UTF-16": ("run: {name: a}".encode("utf-16"), "recipe.yaml:1: not UTF-8 text (byte 0)"),
    "a list as a key": (REST.encode() + b"? [a]\n: 1\n", "recipe.yaml:4: the file has a list"),
    "a section as a key": (REST.encode() + b"run: {{a: 1}: 2}\n", ":4: run has a list or section"),
    "a number as a key": (REST.encode() + b"1: 2\n", "recipe.yaml:4: 1: no such key"),
    "an empty key": (REST.encode() + b"~: 2\n", "recipe.yaml:4: ~: no such key"),
    "a key twice": (REST.encode() + b"run: {name: a, name: b}\n", ":4: run.name is given twice"),
    "a merge key": (REST.encode() + b"run: {<<: {name: a}}\n", ":4: run.<<: no such key"),
    "an unknown anchor": (REST.encode() + b"run: *a\n", "recipe.yaml:4: not valid YAML"),
    "an anchor in itself": (REST.encode() + b"run: &a {name: *a}\n", "nested too deeply"),
    "the file in itself": (b"&a\n" + REST.encode() + b"run: *a\nloss: *a\n", "recipe.yaml: "),
    "anchors that grow": (
        b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9))
                   for i in range(1, 9)),
        "recipe.yaml: expands to more than 20000 values",
    ),
    "deep lists": (REST.encode() + b"run: " + b"[" * 50 + b"]" * 50, "nested too deeply"),
    "deeper sections": (REST.encode() + b"run: " + b"{a: " * 1500 + b"}" * 1500, "nested too dee"),
    "a long key": (REST.encode() + b'? "' + b"k" * 99_000 + b'"\n: 1\n', "kkk...: no such key"),
    "a long value": (REST.encode() + b"run: {name: " + b"k" * 99_000 + b"}\n", "at most 100 ch"),
    "a megabyte": (REST.encode() + b"#" * 2**20, "recipe.yaml: cannot be read (1048"),
    "a number without end": (
        REST.encode() + b"optim: {lr: " + b"9" * 5000 + b"}\n", ":4: optim.lr is a number of 5000"
    ),
    "an object": (
        REST.encode() + b"run: !!python/object/apply:os.system [touch x]\n",
        ":4: run has the YAML tag !!python/object/apply:os.system",
    ),
    "a date": (REST.encode() + b"run: {name: !!timestamp x}\n", "run.name has the YAML tag !!time"),
    "bytes": (REST.encode() + b"run: {name: !!binary YQ==}\n", "run.name has the YAML tag !!bina"),
    "a set": (REST.encode() + b"run: {tags: !!set {a}}\n", "run.tags has the YAML tag !!set"),
    "a file that is a set": (b"!!set {a, b}\n", "recipe.yaml has the YAML tag !!set"),
    "no int": (REST.encode() + b"optim: {lr: !!int x}\n", "optim.lr is 'x', which is no int"),
    "no float": (REST.encode() + b"optim: {lr: !!float x}\n", "optim.lr is 'x', which is no flo"),
    "no bool": (REST.encode() + b"optim: {lr: !!bool x}\n", "optim.lr is 'x', which is no bool"),
    "not a number": (REST.encode() + b"optim: {lr: .nan}\n", "optim.lr is nan: it should be a fin"),
    "two lengths": (
        REST.encode().replace(b"max_steps: 1", b"max_steps: 1, num_epochs: 1"),
        ":3: train: give exactly one of max_steps and num_epochs",
    ),
    "an unset variable": (
        REST.encode() + b"run:\n  name: ${WMTP_NOT_SET}\n",
        ":5: the environment variable WMTP_NOT_SET is not set. Set it, or write",
    ),
    "a variable in braces": (
        REST.encode() + b"run: {name: ${WMTP_NOT_SET}}\n", "Put ${...} in quotes inside braces"
    ),
    "a number of a weighting": (
        REST.encode().replace(b"baseline-mtp", b"3"),
        ":2: weighting.algorithm is 3, which is no name. Use baseline-mtp",
    ),
    "a terminal's command as a key": (REST.encode() + b'"\\e[31m": 1\n', r":4: '\x1b[31m': no"),
    "a line break in a key": (REST.encode() + b'"a\\nb": 1\n', r":4: 'a\nb': no such key"),
    "half a character": (REST.encode() + b'run: {name: "\\ud800"}\n', "run.name is '\\ud800'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_broken_file_is_told_on_short_lines(tmp_path: Path, name: str) -> None:
    content, message = TEXTS[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(None, str(recipe))
    lines = str(caught.value).split("\n")
    assert any(message in line for line in lines), lines
    for line in lines:
        assert line.startswith(str(recipe))
        assert len(line) < 600
        assert line.isprintable()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file or directory"),
        (lambda path: __import__("os").mkfifo(path), "Not an ordinary file"),
        (lambda path: path.symlink_to("/dev/zero"), "Not an ordinary file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match=rf"r\.yaml: cannot be read \({reason}\)"):
        load_settings(None, str(tmp_path / "r.yaml"))


def test_a_fault_of_one_key_does_not_hide_those_of_others(tmp_path: Path) -> None:
    text = (
        "run: {name: !!binary YQ==}\noptim: {lr: fast}\nweighting: {algorithm: rho1-wmtp, "
        "temperature: ${WMTP_NOT_SET}, mode: x}\ntrain: {max_stepz: 1}\n"
    ).replace("${WMTP_NOT_SET}", '"${WMTP_NOT_SET}"')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(None, str(recipe))
    found = str(caught.value)
    for part in (
        "run.name has the YAML tag", "optim.lr is 'fast'", "WMTP_NOT_SET is not set",
        "weighting.mode is 'x'", "train.max_stepz: no such key", "data is missing",
    ):  # fmt: skip
        assert part in found
    assert "weighting.temperature" not in found  # told once, by its variable


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1_0e-5", 1e-4), (".0001", 1e-4), ("+1e-4", 1e-4)],
)
def test_numbers_are_numbers_however_they_are_written(
    tmp_path: Path, text: str, value: float
) -> None:
    """YAML 1.1 takes 1e-4 for text, and hands the user's learning rate on as a word."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(REST + f"optim: {{lr: {text}}}\n")
    assert load_settings(None, str(recipe)).recipe.optim.lr == value


def test_overrides_are_read_as_carefully_as_files(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(REST)
    overrides = {
        "optim.lr=" + "9" * 5000: "optim.lr is a number of 5000 digits",
        "run.name=!!timestamp x": "run.name has the YAML tag !!timestamp",
        "run={name: !!int x}": "run.name is 'x', which is no int",
        "train=[": "not valid YAML",
        "optim.betas=": "optim.betas is None, but a list is expected",
        "=1": "write it as section.key=value",
        "run.name.x.y=1": "run.name is {'x': {'y': 1}}: it should be a valid string",
    }
    for override, message in overrides.items():
        with pytest.raises(ConfigError) as caught:
            load_settings(None, str(recipe), overrides=(override,))
        lines = str(caught.value).split("\n")
        assert any(message in line and line.startswith("--set ") for line in lines), lines


def test_the_command_line_says_it_in_plain_lines_and_exits_with_2(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(REST + 'optim: {lr: fast, beta: 1}\n"\\e[31m": 1\n')
    code = "import sys; sys.argv[0] = 'wmtp'; from wmtp.cli import main\n"
    code += "try: main()\n"
    code += "finally: assert 'wmtp.model.hf_layout' not in sys.modules"  # no weight was loaded
    ran = subprocess.run(
        [sys.executable, "-c", code, "train", "--recipe", recipe],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    lines = ran.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"error: {recipe}:") and line.isprintable() for line in lines)
    assert ran.stdout == ""
