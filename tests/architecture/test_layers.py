"""Imports only go down, and what belongs in one place stays there."""

import ast
import re
from pathlib import Path

import pytest

import wmtp

PACKAGE = Path(wmtp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Who may know whom: a part may import from parts further down in this list, or from itself.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"bench"},
    {"doctor"},
    {"trial"},
    {"launch"},
    {"evaluate", "dry_run", "score"},
    {"memory_plan"},
    {"train", "audit"},
    {"stage1", "step", "samples"},
    {"state", "job", "average", "sync", "config_check"},
    {"opening"},
    {"comparison", "harness", "corpus"},
    {"config"},
    {"sections"},
    {"config_files"},
    {"verify"},
    {"export"},
    {"evaluation"},
    {"data"},
    {"model", "weighting", "checkpoints", "tracking"},
    {"runtime"},
    {"loss", "optim", "safetensors_writer"},
    {"distributed"},
    {"errors", "untrusted"},
    {"secrets", "__init__"},
]
LEVEL = {part: depth for depth, layer in enumerate(LAYERS) for part in layer}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> set[str]:
    """Parts of wmtp that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "wmtp":
                names = [
                    f"wmtp.{alias.name}" if alias.name != "__version__" else "wmtp.__init__"
                    for alias in node.names
                ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("wmtp.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    part = part_of(path)
    for imported in imports_of(path) - {part}:
        assert LEVEL[part] < LEVEL[imported], f"{path.name} ({part}) imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_devices_are_known_in_one_file(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix() == "runtime/device.py":
        return
    named = re.findall(r"torch\.(?:cuda|mps|backends)\b.*", path.read_text())
    assert not named, f"{path.name} names a device: {named}"
    tree = ast.parse(path.read_text())
    words = {"cuda", "mps"}
    compared = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(c, ast.Constant) and c.value in words for c in node.comparators)
    ]
    assert not compared, f"{path.name} asks which device it is: {compared}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_is_read_and_no_remote_code_runs(path: Path) -> None:
    text = path.read_text()
    assert not re.search(
        r"torch\.load\(|import pickle|pickle\.load|trust_remote_code\s*=\s*True", text
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_guesses_at_attributes_or_swallows_everything(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno} catches everything"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "hasattr", f"{path.name}:{node.lineno} uses hasattr"


def test_the_shift_by_the_horizon_happens_in_the_loader_only() -> None:
    """Trap (b): labels shifted twice. Neither model, loss nor weighting may move targets."""
    for path in [*(PACKAGE / "loss").glob("*.py"), *(PACKAGE / "weighting").glob("*.py")]:
        tree = ast.parse(path.read_text())
        calls = [
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        ]
        assert not {"roll", "unfold"} & set(calls), path.name
