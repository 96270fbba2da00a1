"""The process of the tests: it receives them when the program's process exists, and judges."""

import ast
import builtins
import importlib
import sys
from typing import Any, Final

from .frames import Channel, Ended, MalformedMessageError
from .operations import perform
from .peer import Peer
from .remote import StandIns

_LONGEST_DETAIL: Final = 300
_NEVER_HERE: Final = frozenset({"__builtins__", "__name__"})


def judge(to_program: Channel, tests_of: Channel) -> tuple[str, str]:
    """Run the tests against the program; gives verdict and detail."""
    operations = _Operations()
    stand_ins = StandIns()
    peer = Peer(to_program, operations.perform, stand_ins, stand_ins.raised_there)
    try:
        hello = to_program.receive()
    except Ended:
        return "killed", "ended while it was loaded"
    except MalformedMessageError:
        return "error", "sent what is no message"
    tests = tests_of.receive()["tests"]  # not earlier: the program's process exists by now
    try:
        if "names" not in hello:
            raise stand_ins.raised_there(peer, hello["raised"])
        code, used = _compiled(tests)
        namespace = _Namespace(peer, hello["names"], used)
    except (SyntaxError, ValueError) as error:
        return "error", _told(error)
    except MemoryError as error:
        return "memory", _told(error)
    except Exception as error:
        return "error", _told(error)
    operations.module = namespace["__name__"]
    try:
        exec(code, namespace)
    except Ended:
        return "killed", "ended before the tests did"
    except AssertionError as error:
        return "failed", _told(error)
    except MemoryError as error:
        return "memory", _told(error)
    except BaseException as error:
        return "error", _told(error)
    if to_program.ended:  # a test that catches everything has caught that, too
        return "killed", "ended before the tests did"
    return "passed", ""


def _told(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except (Exception, Ended):
        text = type(error).__name__
    return text[:_LONGEST_DETAIL]


def _compiled(tests: str) -> tuple[Any, set[str]]:
    """The tests' code, and the names they read."""
    try:
        tree = ast.parse(tests.removeprefix("\ufeff"), "tests.py")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the tests are not Python: {error}") from error
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return compile(tree, "tests.py", "exec", dont_inherit=True, optimize=0), used


class _Namespace(dict[str, Any]):
    """The tests' names: their own, Python's, and the program's, whose data are read anew each time.

    Python's own functions and modules stay what they are, whatever the program calls ``abs`` or
    ``math``; but for a program that has nothing else that the tests use, as ``sum`` of MBPP's 126.
    """

    def __init__(self, peer: Peer, names: Any, used: set[str]) -> None:
        super().__init__({"__name__": "tests", "__builtins__": builtins})
        self._peer, self._data = peer, set[str]()
        told = [
            (name, value)
            for name, value in names
            if isinstance(name, str) and isinstance(value, dict) and name not in _NEVER_HERE
        ]
        own = {name for name, _ in told} & used
        only_pythons = all(map(_is_pythons, own))
        for name, value in told:
            if "module" in value:
                if str(value["module"]).partition(".")[0] in sys.stdlib_module_names:
                    self[name] = importlib.import_module(value["module"])
            elif _is_pythons(name) and not only_pythons:
                if name in sys.stdlib_module_names and name not in vars(builtins) and name in used:
                    self[name] = importlib.import_module(name)
            elif "value" in value:
                self[name] = peer.values().read(value["value"])
            else:
                dict.__setitem__(self, name, None)
                self._data.add(name)

    def __getitem__(self, name: str) -> Any:
        if name in self._data:
            return self._peer.request("global", None, name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._data.discard(name)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self._data.discard(name)
        super().__delitem__(name)


def _is_pythons(name: str) -> bool:
    return name in vars(builtins) or name in sys.stdlib_module_names


class _Operations:
    """What the program may do with objects of the tests that it was given.

    It may call functions and go through iterators. Of an instance of a class of the tests it may
    use what has no leading underscore; a function's globals or a generator's frame would lead it to
    the tests themselves.
    """

    _OF_ALL: Final = frozenset({"call", "next", "iter", "send"})
    _ATTRIBUTES: Final = frozenset({"get", "set", "delete"})

    def __init__(self) -> None:
        self.module: str | None = None

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "make":
            operation = "call"
        if operation in self._OF_ALL:
            return perform(operation, target, args, kwargs)
        kind = type(target)
        if self.module is None or kind is type or kind.__module__ != self.module:
            raise PermissionError(f"{operation} of an object of the tests")
        if operation in self._ATTRIBUTES and str(args[0]).startswith("_"):
            raise PermissionError(f"attribute {args[0]} of an object of the tests")
        return perform(operation, target, args, kwargs)
