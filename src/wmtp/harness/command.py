"""Hands a command line over to lm-evaluation-harness, which then knows our models and tasks."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wmtp.errors import ConfigError

TASKS: Final = Path(__file__).parent / "tasks"


def run_harness(arguments: Sequence[str]) -> None:
    """Run the harness's own command line with ``--model wmtp`` known to it.

    Raises:
        ConfigError: it is not installed.
        SystemExit: as the harness ends.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "lm-evaluation-harness is not installed. Install it: pip install 'wmtp[lm-eval]'."
        )
    # the harness's own, which it would not look for once there is one
    import lm_eval.models  # noqa: F401
    from lm_eval.__main__ import cli_evaluate

    import wmtp.harness.model  # noqa: F401  # registers it

    sys.argv = ["wmtp lm-eval", *with_our_tasks(arguments)]
    cli_evaluate()


def with_our_tasks(arguments: Sequence[str]) -> list[str]:
    """What was typed, with our folder of tasks where tasks are named and no other folder is.

    Example:
        >>> with_our_tasks(["--tasks", "mine", "--include_path=here"])
        ['--tasks', 'mine', '--include_path=here']
        >>> with_our_tasks(["run", "--tasks", "wmtp_mbpp"])[:4]
        ['run', '--tasks', 'wmtp_mbpp', '--include_path']
    """
    typed = list(arguments)
    names = {one.partition("=")[0] for one in typed}
    if typed[:1] == ["ls"] or "--include_path" in names or not names & {"--tasks", "-t"}:
        return typed
    return [*typed, "--include_path", str(TASKS)]
