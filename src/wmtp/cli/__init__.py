"""The commands, by subject. Torch and the rest are imported by the command that needs them."""

import os
import sys
import time
import traceback

from wmtp.cli import training, planning, models, judging, engines, runs, machine, data  # isort: skip  # in the order of --help
from wmtp.cli.apps import app
from wmtp.distributed.launcher import end_with_the_launcher, is_launched
from wmtp.errors import LostRankError, WmtpError
from wmtp.runtime.environment import set_environment_before_torch
from wmtp.runtime.stopping import end_in_order
from wmtp.untrusted import printable

__all__ = [
    "app",
    "data",
    "engines",
    "judging",
    "machine",
    "main",
    "models",
    "planning",
    "runs",
    "training",
]

NEWEST = "newest"
"""``--resume`` alone; as ``launch.NEWEST``, which is not imported for every command."""


def main() -> None:
    """Run a command; users' mistakes become plain lines and an exit code."""
    arguments = sys.argv[1:]
    set_environment_before_torch()  # commands that read a config set what it says a little later
    end_in_order()
    if is_launched():  # before torch is imported, which takes long enough to lose a launcher in
        end_with_the_launcher()
    try:
        app(_with_resume_value(arguments), standalone_mode=True)
    except WmtpError as error:
        if "--verbose" in arguments:
            _print_traceback()
        else:
            from wmtp.secrets import without_secrets

            rank = _wait_for_who_knows_more(error)
            for line in without_secrets(str(error)).split("\n"):
                print(f"{rank}error: {printable(line)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # training says where it stopped, and does not come here
        sys.exit(130)
    except Exception as error:  # a fault of ours is shown whole, as Python would, but for secrets
        if is_launched():
            print(f"{_wait_for_who_knows_more(error) or 'rank 0: '}error:", file=sys.stderr)
        _print_traceback()
        sys.exit(1)


def _print_traceback() -> None:
    from wmtp.secrets import without_secrets

    print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)


def _wait_for_who_knows_more(error: Exception) -> str:
    """What the lines of this rank begin with; nothing for the first, and for a single process.

    Most faults befall all ranks alike. The first says so at once, whereupon the launcher ends
    the others before they say it again. A fault of a later rank alone costs the first its
    company: it lets the other speak before, or be named by the launcher.
    """
    rank = os.environ.get("RANK", "0") if is_launched() else "0"
    time.sleep(6 if isinstance(error, LostRankError) else 0 if rank == "0" else 3)
    return "" if rank == "0" else f"rank {rank}: "


def _with_resume_value(arguments: list[str]) -> list[str]:
    """``--resume`` may stand alone: then it means the newest good checkpoint."""
    result = []
    for i, argument in enumerate(arguments):
        result.append(argument)
        alone = i + 1 == len(arguments) or arguments[i + 1].startswith("-")
        if argument == "--resume" and alone:
            result.append(NEWEST)
    return result
