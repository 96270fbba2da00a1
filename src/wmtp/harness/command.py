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

    typed = list(arguments)
    if typed[:1] != ["ls"] and "--include_path" not in typed and "--tasks" in typed:
        typed += ["--include_path", str(TASKS)]
    sys.argv = ["wmtp lm-eval", *typed]
    cli_evaluate()
