"""On the tests' side: what stands for a function, a class or an instance of the program.

What a test does with it, the program's process does. Two rules keep a program from judging itself.
A stand-in never equals a plain value and cannot be ordered against one: else a class whose
instances equal everything would pass every test. And what came of arithmetic with a plain value
gives no number: in ``abs(f(x) - 2.5) < 1e-6`` the program would be told the answer, and asked how
near it was.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from .frames import MalformedMessageError
from .peer import REMOTE_CLASS, Peer, Remote, builtin_exception

_get: Final = object.__getattribute__
_PLAIN: Final = (bool, int, float, complex, str, bytes)


class RemoteObject(Remote):
    """Stands for an object of the program."""

    __slots__ = ("__weakref__", "_kind", "_met_plain")

    def __init__(self, peer: Peer, handle: int, kind: str) -> None:
        for name, value in (("_peer", peer), ("_handle", handle), ("_kind", kind)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_met_plain", False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it there."""
        # an instance that a class makes stays an instance, even of a class derived from list
        operation = "make" if _get(self, "_kind") == "type" else "call"
        return _ask(self, operation, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, "delete", name)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, RemoteObject):
            return _ask(self, "eq", other) is True
        return _equals_plain(self, other)

    def __ne__(self, other: object) -> bool:
        if isinstance(other, RemoteObject):
            return _ask(self, "ne", other) is True
        return not self == other

    def __hash__(self) -> int:
        return _whole(_ask(self, "hash"))

    def __bool__(self) -> bool:
        return _ask(self, "bool") is True

    def __len__(self) -> int:
        return _whole(_ask(self, "len"))

    def __repr__(self) -> str:
        return _text(_ask(self, "repr"))

    def __str__(self) -> str:
        return _text(_ask(self, "str"))

    def __format__(self, specification: str) -> str:
        return _text(_ask(self, "format", specification))

    def __iter__(self) -> Iterator[Any]:
        found = _ask(self, "iter")
        return found if isinstance(found, Iterator) else iter(())

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __contains__(self, value: object) -> bool:
        if isinstance(value, RemoteObject):
            return _ask(self, "contains", value) is True
        return any(one is value or one == value for one in self)

    def __instancecheck__(self, instance: object) -> bool:
        remote = isinstance(instance, RemoteObject | Exception)
        return remote and _ask(self, "isinstance", instance) is True

    def __subclasscheck__(self, subclass: object) -> bool:
        return isinstance(subclass, RemoteObject) and _ask(self, "issubclass", subclass) is True

    def __enter__(self) -> Any:
        return _ask(self, "enter")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return _ask(self, "exit", None if kind is None else kind.__name__, str(error)) is True


def _ask(remote: RemoteObject, operation: str, *args: Any, **kwargs: Any) -> Any:
    peer: Peer = _get(remote, "_peer")
    return peer.request(operation, _get(remote, "_handle"), *args, **kwargs)


def _equals_plain(remote: RemoteObject, other: object) -> bool:
    """By value, where the object's class is derived from a plain one; the program is not told."""
    if not isinstance(other, list | tuple | dict | set | frozenset | int | float | str | bytes):
        return False
    try:
        value = _ask(remote, "value")
    except TypeError:
        return False
    return not isinstance(value, RemoteObject) and bool(value == other)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"a {type(value).__name__} instead of an integer")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"a {type(value).__name__} instead of a text")
    return value


# operators ---------------------------------------------------------------------------------------

_ARITHMETIC: Final = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift", "and",
    "or", "xor", "divmod",
)  # fmt: skip
_ORDERINGS: Final = ("lt", "le", "gt", "ge")
_TO_NUMBERS: Final = ("abs", "round", "int", "float", "complex", "neg", "pos", "invert", "index",
                      "trunc", "floor", "ceil")  # fmt: skip
_ITEMS: Final = ("getitem", "setitem", "delitem", "reversed")


def _arithmetic(operation: str) -> Callable[..., Any]:
    def method(self: RemoteObject, other: Any) -> Any:
        result = _ask(self, operation, other)
        tainted = not isinstance(other, RemoteObject) or _get(other, "_met_plain")
        if not tainted and not _get(self, "_met_plain"):
            return result
        if isinstance(result, RemoteObject):
            object.__setattr__(result, "_met_plain", True)
        elif isinstance(result, _PLAIN):
            raise TypeError(
                "arithmetic of the program's object with a plain value gave a plain one"
            )
        return result

    return method


def _ordering(operation: str) -> Callable[..., Any]:
    def method(self: RemoteObject, other: Any) -> Any:
        if not isinstance(other, RemoteObject):
            raise TypeError(
                f"the program's object cannot be ordered against {type(other).__name__}"
            )
        return _ask(self, operation, other) is True

    return method


def _to_number(operation: str) -> Callable[..., Any]:
    def method(self: RemoteObject, *args: Any) -> Any:
        result = _ask(self, operation, *args)
        if _get(self, "_met_plain"):
            if not isinstance(result, RemoteObject):
                raise TypeError("the program's object has met a plain value and gives no number")
            object.__setattr__(result, "_met_plain", True)
        return result

    return method


def _item(operation: str) -> Callable[..., Any]:
    return lambda self, *args: _ask(self, operation, *args)


for _names, _make in (
    (_ARITHMETIC, _arithmetic), (tuple(f"r{name}" for name in _ARITHMETIC), _arithmetic),
    (tuple(f"i{name}" for name in _ARITHMETIC[:-1]), _arithmetic),
    (_ORDERINGS, _ordering), (_TO_NUMBERS, _to_number), (_ITEMS, _item),
):  # fmt: skip
    for _name in _names:
        setattr(RemoteObject, f"__{_name}__", _make(_name))


# what is made of a handle ------------------------------------------------------------------------


class StandIns:
    """Makes one stand-in for each object of the program, so that the same object is the same."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def __call__(self, peer: Peer, message: dict[str, Any]) -> Any:
        """The stand-in for a handle."""
        handle, kind = message["handle"], message["kind"]
        if type(handle) is not int or type(kind) is not str:
            raise MalformedMessageError("a handle is no number")
        if handle not in self._made:
            self._made[handle] = self._make(peer, handle, kind, message)
        return self._made[handle]

    def _make(self, peer: Peer, handle: int, kind: str, message: dict[str, Any]) -> Any:
        if kind == "generator":
            return _generator(peer, handle)
        if kind == "coroutine":
            return _coroutine(peer, handle)
        if kind == "type" and "bases" in message:
            return _exception_class(peer, handle, str(message.get("name")), message["bases"])
        return RemoteObject(peer, handle, kind)

    def raised_there(self, peer: Peer, told: dict[str, Any]) -> BaseException:
        """The exception for one that the program raised."""
        if not isinstance(told, dict):
            raise MalformedMessageError("an exception is no object")
        kind: type[Exception] = builtin_exception(told.get("bases"))
        text, args, own = str(told.get("text")), (), told.get("class")
        with_args = peer.values().read(told.get("args"))
        if isinstance(with_args, tuple):
            args = with_args
        if isinstance(own, dict) and "handle" in own:
            kind = self(peer, own)
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise MalformedMessageError("an exception's class is none")
        try:
            error = kind(*args)
        except TypeError:
            return RuntimeError(f"{told.get('name')}: {text}")
        itself = told.get("self")
        if isinstance(itself, dict) and "handle" in itself:
            error._wmtp_itself = RemoteObject(peer, itself["handle"], "exception")  # type: ignore[attr-defined]
            error._wmtp_text = text  # type: ignore[attr-defined]
        return error


def _generator(peer: Peer, handle: int) -> Generator[Any, Any, Any]:
    sent = None
    while True:
        try:
            value = (
                peer.request("next", handle) if sent is None else peer.request("send", handle, sent)
            )
        except StopIteration as end:
            return end.value
        sent = yield value


async def _coroutine(peer: Peer, handle: int) -> Any:
    return peer.request("await", handle)


def _exception_class(peer: Peer, handle: int, name: str, bases: object) -> type[Exception]:
    """An exception class of the program, so that tests can catch what is raised there."""

    def text(self: Any) -> str:
        return str(self.__dict__.get("_wmtp_text", base.__str__(self)))

    def attribute(self: Any, wanted: str) -> Any:
        itself = self.__dict__.get("_wmtp_itself")
        if itself is None or wanted.startswith("_"):
            raise AttributeError(wanted)
        return _ask(itself, "get", wanted)

    base = builtin_exception(bases)
    body = {
        "__str__": text,
        "__getattr__": attribute,
        REMOTE_CLASS: handle,
        "__module__": "program",
    }
    return type(name, (base,), body)
