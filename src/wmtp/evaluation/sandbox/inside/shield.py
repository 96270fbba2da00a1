"""Keeps what talks to the tests whole, whatever a program does to Python's own functions."""

import builtins
import sys


def shield() -> None:
    """Give these modules Python's functions under their own names.

    This is for the program's sake, which would else be taken for one that crashed.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in (__package__, "json", "contextlib", "collections"):
            for function, value in vars(builtins).items():
                if not function.startswith("_"):
                    vars(module).setdefault(function, value)
