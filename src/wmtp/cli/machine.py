"""What a machine can do: ``wmtp doctor`` and ``wmtp bench``."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import ConfigFile, Overrides, Profiles, Verbose, note, read_settings
from wmtp.errors import ConfigError

if TYPE_CHECKING:
    from wmtp.doctor.doctor import Request
    from wmtp.doctor.finding import Finding


@app.command()
def doctor(
    config: ConfigFile = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="YAML file of the experiment, to check as well.")
    ] = None,
    profile: Profiles = None,
    override: Overrides = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Train a small model from scratch, not the recipe's.")
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="Train the small model with all four algorithms; audit as well."
        ),
    ] = False,
    audit_only: Annotated[
        bool, typer.Option("--audit-only", help="Only ask what a step would need of Apple's MPS.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop before training.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write the findings to.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Check this machine, and your files if they are named: offline, within a minute.

    Exit code 0 if nothing failed, 1 if something did, 2 if it is your files that must be changed.
    What cannot be asked here is called "not checked" and is no pass.
    """
    if recipe is None and (config or profile or override):
        raise ConfigError("--config, --profile and --set say how a recipe runs: give --recipe too.")
    if json_file is not None:
        check_place(json_file, "--json")
    request = doctor_request(config, recipe, profile, override)
    from dataclasses import replace

    from wmtp.doctor.doctor import FILES, examine
    from wmtp.doctor.finding import summary
    from wmtp.runtime.machine import this_machine

    request = replace(
        request, tiny=tiny, every_algorithm=every, audit_only=audit_only, dry_run=dry_run
    )
    started = time.monotonic()
    findings = examine(request, table_printer())
    seconds = time.monotonic() - started
    print(f"\n{summary(findings, seconds)}")
    if json_file is not None:
        from dataclasses import asdict

        content = {
            "machine": asdict(this_machine()),
            "seconds": round(seconds, 1),
            "findings": [finding.as_json() for finding in findings],
        }
        write_text(json_file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    failures = [finding for finding in findings if finding.outcome == "failed"]
    for finding in failures:
        if finding.group == FILES and finding.refusal and finding.refusal.exit_code == 2:
            raise finding.refusal
    if failures:
        raise typer.Exit(1)


@app.command()
def bench(
    report: Annotated[
        Path | None, typer.Option("--report", help="File to write the figures to, as JSON.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", help="Measure nothing; print the second report over the first."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Measure this machine: training, memory, the loss, decoding; some three minutes.

    A report holds figures, the chip, the system and versions, and nothing of you: no names of
    persons or machines, no paths. docs/mac-reports/README.md says where to send it.
    """
    if compare is not None:
        if report is not None:
            raise ConfigError("--compare measures nothing that --report could write: use one.")
        from wmtp.bench.figures import comparison, read_report

        for line in comparison(*map(read_report, compare)):
            print(line)
        return
    if report is not None:
        check_place(report, "--report")
    from wmtp.runtime.environment import set_environment_before_torch

    set_environment_before_torch()
    from wmtp.bench.bench import run_bench

    found = run_bench(note)
    for line in found.lines():
        print(line)
    if report is not None:
        write_text(report, found.text())


def doctor_request(
    config: str | None, recipe: str | None, profile: list[str] | None, override: list[str] | None
) -> "Request":
    """The user's settings, and the same as ten steps that leave nothing behind."""
    from wmtp.runtime.environment import set_environment_before_torch

    if recipe is None:
        set_environment_before_torch()
        from wmtp.doctor.doctor import Request

        return Request()
    settings = read_settings(config, recipe, profile, override)
    from wmtp.doctor.doctor import Request
    from wmtp.doctor.files import OVERRIDES

    ten_steps = read_settings(config, recipe, profile, [*(override or []), *OVERRIDES])
    return Request(settings, ten_steps)


def table_printer() -> Callable[["Finding"], None]:
    """Prints findings as rows of a table as wide as the terminal, a heading before each group."""
    from wmtp.doctor.finding import lines_of

    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    group = ""

    def show(finding: "Finding") -> None:
        nonlocal group
        if finding.group != group:
            group = finding.group
            print(f"\n{group}")
        for line in lines_of(finding, width):
            print(line)
        sys.stdout.flush()

    return show


def check_place(path: Path, option: str) -> None:
    """Refuse a file that could not be written, before minutes are spent on what goes into it."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} is '{path}': no file can be made there. Name a file of a "
                          "folder that exists.")  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none."""
    from wmtp.runtime.durable import replace_file, storage_errors

    with storage_errors(f"{path} could not be written"):
        replace_file(path, text.encode())
    note(str(path))
