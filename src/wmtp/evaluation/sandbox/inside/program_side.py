"""The process of the program: confined, then the program is run, then its functions are called."""

import atexit
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, Final

from .frames import Channel, Ended
from .operations import perform
from .peer import Peer, builtin_exception
from .remote import StandIns

_FILE_NAME: Final = "solution.py"
_MOST_DIGITS: Final = 50_000


def run_with_standard_input(source: str) -> int:
    """Run the program as a script; gives its exit code."""
    module = _new_module("__main__")
    atexit._clear()
    try:
        exec(_compiled(source), module.__dict__)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc(limit=-5)
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc(limit=-3)
        code = code or 1
    return code & 0xFF


def serve_tests(source: str, channel: Channel) -> None:
    """Run the program as a module, tell what it defines, then do what the tests ask for."""
    module = _new_module("solution")
    stand_ins = StandIns()
    operations = _Operations(module)
    peer = Peer(channel, operations.perform, stand_ins, stand_ins.raised_there)
    operations.keep = peer.keep
    try:
        exec(_compiled(source), module.__dict__)
        channel.send({"names": _defined(module, peer)})
    except BaseException as error:
        channel.send({"raised": peer.describe(error)})
        return
    try:
        while True:
            peer.serve(channel.receive())
    except Ended:
        return


class _Operations:
    def __init__(self, module: types.ModuleType) -> None:
        self._module = module
        self.keep: Callable[[Any], Any] = lambda value: value

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "global":
            return self._module.__dict__[args[0]]
        if operation == "make":
            return self.keep(target(*args, **kwargs))
        if operation == "await":
            import asyncio  # it is large, and seldom needed

            return asyncio.run(_awaited(target))
        if operation == "exit":
            return _leave(target, *args)
        return perform(operation, target, args, kwargs)


async def _awaited(target: Any) -> Any:
    return await target


def _leave(target: Any, name: str | None, text: str) -> bool:
    if name is None:
        return bool(type(target).__exit__(target, None, None, None))
    kind = builtin_exception([name])
    error = kind(text)
    return bool(type(target).__exit__(target, kind, error, None))


def _new_module(name: str) -> types.ModuleType:
    sys.argv[:] = [_FILE_NAME]
    sys.set_int_max_str_digits(_MOST_DIGITS)
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


def _compiled(source: str) -> types.CodeType:
    # optimize=0: asserts stay, whatever the environment says
    return compile(source.removeprefix("\ufeff"), _FILE_NAME, "exec", dont_inherit=True, optimize=0)


def _defined(module: types.ModuleType, peer: Peer) -> list[list[Any]]:
    """Names of the program: of modules theirs, of what can be called a handle, of data no more."""
    told: list[list[Any]] = []
    for name, value in list(module.__dict__.items()):
        if name.startswith("__"):
            continue
        if type(value) is types.ModuleType:
            told.append([name, {"module": value.__name__}])
        elif callable(value):
            told.append([name, {"value": peer.values().write(value)}])
        else:
            told.append([name, {"data": True}])
    return told
