"""A toy run, its processes really killed, and the comparison with a run that was not.

Everything goes through the command line and the run folder: ``wmtp train``, its exit code, its
files. How saving works inside is not known here.
"""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.end_to_end.conftest import TEXT
from tests.processes.programs import Programs
from tests.processes.running import Running
from tests.processes.strace import traced
from wmtp.checkpoints.checkpoint import find_damage, list_checkpoints, step_of
from wmtp.runtime.metrics import read_metrics

SAVE_INTERVAL = 5
KEEP_LAST = 2
TIMES = {"tokens_per_second", "memory/peak_bytes"}


# a toy world --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """A folder with a corpus, a tokenizer and one recipe.

    Attributes:
        folder: holds everything; wmtp runs in it.
        runs: parent of the run folders.
        programs: to start wmtp in it.
    """

    folder: Path
    programs: Programs

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def arguments(self, name: str, *more: str) -> tuple[str, ...]:
        """What ``wmtp`` is given to train the recipe."""
        files = ("--config", "config.yaml", "--recipe", "recipe.yaml")
        return ("train", *files, "--run-name", name, *more)

    def whole(self, *, forked: bool = False) -> Path:
        """A run of this recipe, by ``python -m wmtp`` unless told so, that nothing disturbed."""
        run = self.runs / "whole"
        if not run.exists():
            start = self.programs.fork if forked else self.programs.real
            ended = start(*self.arguments("whole"))
            assert ended.wait() == 0, ended.said
        return run


def programs_and_rewards(folder: Path) -> str:
    """Programs of four problems, half of them right; the path of the file."""
    rows = [
        {
            "prompt": f"def problem_{problem}(a):\n",
            "completion": f"    return a + {problem} * {i}\n" + ("# ok\n", "# bad\n")[i % 2],
            "is_correct": i % 2 == 0,
            "group": f"problem {problem}",
        }
        for problem in range(4)
        for i in range(40)
    ]
    path = folder / "programs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_toy(folder: Path, changes: Callable[[Path, Any, Any], None] | None = None) -> Toy:
    """Write corpus, tokenizer, config and recipe.

    Two epochs, whose border falls inside a step; dropout draws random numbers; an evaluation and a
    checkpoint come now and then, not always together.

    Args:
        folder: empty.
        changes: called with the folder, the config and the recipe before they are written.
    """
    (folder / "text.txt").write_text(TEXT + TEXT.replace("add", "total"))
    (folder / "held_out.txt").write_text(TEXT[: len(TEXT) // 8].replace("add", "sum"))
    programs = Programs(folder)
    made = programs.fork("tokenizer", "train", "--source", "text.txt", "--vocab-size", "300",
                         "--out", "tokenizer")  # fmt: skip
    assert made.wait() == 0, made.said
    saving = {"base_path": "runs", "save_interval": SAVE_INTERVAL, "keep_last": KEEP_LAST}
    config: dict[str, Any] = {
        "devices": {"compute_backend": "cpu"},
        "paths": {"checkpoints": saving},
        "mlflow": {"enabled": False},
        "log_interval": 1,
    }
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "dropout": 0.1}
    text = {"sources": ["text.txt"], "max_length": 24, "batch_size": 2}
    recipe: dict[str, Any] = {
        "model": shape | {"heads": {"horizon": 3}},
        "data": {
            "tokenizer": "tokenizer",
            "train": text,
            "eval": {"sources": ["held_out.txt"]},
        },
        "weighting": {"algorithm": "baseline-mtp"},
        "train": {"num_epochs": 2, "gradient_accumulation": 2, "eval_interval": 7},
        "optim": {"lr": 0.01, "warmup_steps": 2},
    }
    if changes is not None:
        changes(folder, config, recipe)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Toy(folder, programs)


def system_calls(toy: Toy, calls: str) -> list[tuple[str, int]]:
    """The system calls on files of checkpoints that an undisturbed run makes.

    Args:
        toy: what is trained.
        calls: which, separated by commas.

    Returns:
        Name and number of each, the number counted as ``strace`` counts it: among the calls of
        that name by that thread.
    """
    name = f"traced-{calls.count(',')}"
    with traced(toy.programs, *toy.arguments(name), rules=(f"trace={calls}",)) as run:
        assert run.wait() == 0, run.said
    counts: dict[tuple[str, str], int] = {}
    found = []
    for line in (toy.folder / "strace.txt").read_text().splitlines():
        thread, _, rest = line.partition(" ")
        call = rest.strip().partition("(")[0]
        if call.isidentifier():
            counts[thread, call] = counts.get((thread, call), 0) + 1
            # what reads, or changed nothing, makes no difference when it fails
            reads = call == "openat" and "O_RDONLY" in rest
            if "/checkpoints/" in rest and not reads and " = -1 " not in rest:
                found.append((call, counts[thread, call]))
    return found


# interrupted runs ---------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What being killed has cost a run.

    Attributes:
        kills: how often it was killed before it was done.
        inside_saves: how many of them left a save that had begun.
        worst_lost: most steps that had to be done again after one.
        seconds: of all its processes together.
    """

    kills: int = 0
    inside_saves: int = 0
    worst_lost: int = 0
    seconds: float = 0.0


def finish(
    toy: Toy,
    name: str,
    spoiled: list[Callable[[tuple[str, ...]], Running]],
    seed: int | None = None,
) -> Outcome:
    """Start a run by each of ``spoiled`` in turn, resuming, and then undisturbed until it is done.

    Every start after the first says ``--resume``, and must go on from the newest good checkpoint.

    Args:
        toy: what is trained.
        name: of the run.
        spoiled: starts wmtp with the arguments it is given and returns when that was killed.
        seed: only for the message of a failure.
    """
    run, outcome, goes_on = toy.runs / name, Outcome(), False
    for start in [*spoiled, lambda arguments: toy.programs.fork(*arguments)]:
        good = good_step(run)
        process = start(toy.arguments(name, *(["--resume"] if goes_on else [])))
        code = process.wait()
        outcome.seconds += time.monotonic() - process.started
        _assert_went_on(process, good)
        assert "Traceback" not in process.said, process.said
        assert process.left_behind(20.0) == []  # workers look for their parent every 5 s
        if code == 0:
            return outcome
        assert code == -signal.SIGKILL, f"{name}, seed {seed}: exit code {code}\n{process.said}"
        outcome.kills += 1
        goes_on = note_loss(run, outcome)
    raise AssertionError(f"{name}, seed {seed}: not done\n{process.said}")


def note_loss(run: Path, outcome: Outcome) -> bool:
    """Count what a kill has cost; whether there is anything to resume."""
    saving = any(run.rglob(".tmp-*"))
    outcome.inside_saves += saving
    lost = last_step(run) - (good_step(run) or 0)
    outcome.worst_lost = max(outcome.worst_lost, lost)
    # one interval, and the save in progress where saving goes on beside the steps
    assert lost <= SAVE_INTERVAL * (2 if saving else 1), f"{lost} steps lost"
    if (run / "run.yaml").is_file():
        return True
    shutil.rmtree(run, ignore_errors=True)  # killed before it had begun
    return False


def _assert_went_on(process: Running, good: int | None) -> None:
    """The first step of a resumed run is the one behind the checkpoint."""
    steps = re.findall(r"^step (\d+)/\d+  loss", process.said, re.MULTILINE)
    if steps:
        assert int(steps[0]) == (good or 0) + 1, process.said


def copied(toy: Toy, name: str) -> Path:
    """A copy of the undisturbed run, to be damaged."""
    run = toy.runs / name
    shutil.copytree(toy.whole(), run, symlinks=True)
    return run


def wait_until(run: Running, seen: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look every half millisecond until something is seen or the run has ended."""
    deadline = time.monotonic() + seconds
    while not seen():
        if run.reap(0) is not None:
            return
        assert time.monotonic() < deadline, f"not seen within {seconds} s:\n{run.said}"
        time.sleep(0.0005)


def killed_after(toy: Toy, seconds: float) -> Callable[[tuple[str, ...]], Running]:
    """A start that is killed so many seconds later."""

    def start(arguments: tuple[str, ...]) -> Running:
        run = toy.programs.fork(*arguments)
        if run.reap(seconds) is None:
            run.kill()
        return run

    return start


def killed_at_call(toy: Toy, number: int) -> Callable[[tuple[str, ...]], Running]:
    """A start that is killed in place of its ``number``-th call on what is being saved."""
    return lambda arguments: toy.programs.fork(*arguments, kill_before=number)


def killed_at_system_call(toy: Toy, call: str, number: int) -> Callable[[tuple[str, ...]], Running]:
    """A start that ``strace`` kills at a thread's ``number``-th such system call."""

    def start(arguments: tuple[str, ...]) -> Running:
        rule = f"inject={call}:signal=KILL:when={number}"
        with traced(toy.programs, *arguments, rules=(f"trace={call}", rule)) as run:
            run.wait()
        return run

    return start


# what a run left ----------------------------------------------------------------------------------


def figures(metrics: Path) -> list[dict[str, Any]]:
    """Every logged value but times."""
    rows = read_metrics(metrics) if metrics.exists() else []
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def last_step(run: Path) -> int:
    """The last step that the run logged; 0 before the first."""
    rows = figures(run / "metrics.jsonl")
    return max((row["step"] for row in rows), default=0)


def good_step(run: Path) -> int | None:
    """The step of the newest good checkpoint."""
    for path in reversed(list_checkpoints(run / "checkpoints")):
        if find_damage(path) is None:
            return step_of(path)
    return None


def assert_same_result(whole: Path, other: Path) -> None:
    """Equal to the last bit: parameters, optimizer, every state, every logged value.

    Of the checkpoints the last is compared: a signal makes one where none was due.
    """
    for rows in ("metrics.jsonl", "stage1/metrics.jsonl"):
        left, right = figures(whole / rows), figures(other / rows)
        assert [row["step"] for row in left] == [row["step"] for row in right], rows
        for one, two in zip(left, right, strict=True):
            unlike = {k: (one.get(k), two.get(k)) for k in one | two if one.get(k) != two.get(k)}
            assert unlike == {}, f"{rows}, step {one['step']}"
    last = list_checkpoints(whole / "checkpoints")[-1].name
    for folder in (f"checkpoints/{last}", "final", "stage1/final", "average"):
        _assert_same_folder(whole / folder, other / folder)


def _assert_same_folder(one: Path, other: Path) -> None:
    names = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (one, other)
    ]
    assert names[0] == names[1], f"{one.name}: {names}"
    for name in names[0]:
        if not _same_content(one / name, other / name):
            raise AssertionError(f"{other / name} differs: {_difference(one / name, other / name)}")


def _same_content(one: Path, other: Path) -> bool:
    left, right = one.read_bytes(), other.read_bytes()
    if left == right:
        return True
    if one.suffix == ".safetensors":
        return _header_and_data(left) == _header_and_data(right)
    return one.suffix == ".json" and _without_sums(json.loads(left)) == _without_sums(
        json.loads(right)
    )


def _header_and_data(content: bytes) -> tuple[Any, bytes]:
    """Of a safetensors file: the order in a header that several ranks wrote is left to chance."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _without_sums(manifest: dict[str, Any]) -> Any:
    """A manifest but for its checksums: the files are compared themselves."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        return manifest
    return manifest | {"files": {name: facts["bytes"] for name, facts in files.items()}}


def _difference(one: Path, other: Path) -> str:
    if one.suffix != ".safetensors":
        return f"{one.read_text()}\nbut\n{other.read_text()}"
    left, right = load_file(one), load_file(other)
    if left.keys() != right.keys():
        return f"{left.keys() ^ right.keys()} in one only"
    # bits and not values: a NaN differs from itself, and -0.0 equals 0.0
    unlike = [n for n in left if left[n].numpy().tobytes() != right[n].numpy().tobytes()]
    return ", ".join(unlike) or "in its header"


def assert_tidy(run: Path) -> None:
    """No temporary file, no checkpoint too many, nothing half written."""
    left = [str(path) for path in run.rglob(".tmp-*")]
    assert left == []
    assert len(list_checkpoints(run / "checkpoints")) <= KEEP_LAST
    for path in list_checkpoints(run / "checkpoints"):
        assert find_damage(path) is None
