"""One of two processes that call each other's functions and read each other's values."""

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, final

from .frames import Channel, MalformedMessageError
from .values import Values

_FRAMES_FOR_VALUES: Final = 12_000
_LONGEST_TEXT: Final = 2_000

_COPIED_MODULES: Final = ("builtins", "collections", "decimal", "fractions", "datetime")

Operate = Callable[[str, Any, list[Any], dict[str, Any]], Any]
StandIn = Callable[["Peer", dict[str, Any]], Any]
RaisedThere = Callable[["Peer", dict[str, Any]], BaseException]


@final
class Peer:
    """One end of the conversation.

    Args:
        channel: to the other.
        operate: does what the other asks for, with an object of this process.
        stand_in: what represents an object of the other process here.
        raised_there: the exception for one that was raised there.
    """

    def __init__(
        self, channel: Channel, operate: Operate, stand_in: StandIn, raised_there: RaisedThere
    ) -> None:
        self.channel = channel
        self._operate, self._stand_in, self._raised_there = operate, stand_in, raised_there
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def values(self) -> Values:
        """A writer and reader for one message and its answer."""
        return Values(self._handle, self._find, self._numbers)

    def request(self, operation: str, handle: int | None, *args: Any, **kwargs: Any) -> Any:
        """Have the other side do something with an object of its own; gives what came of it.

        Containers among the arguments hold afterwards what the other side left in them.

        Raises:
            Ended: the other process is no more.
            MalformedMessageError: its answer is none.
            Exception: what was raised there.
        """
        values = self.values()
        with _room_for_deep_values():
            written = {
                "do": operation,
                "with": handle,
                "args": [values.write(value) for value in args],
                "named": {name: values.write(value) for name, value in kwargs.items()},
            }
        given = list(values.containers)
        self.channel.send(written)
        while True:
            answer = self.channel.receive()
            if not isinstance(answer, dict):
                raise MalformedMessageError("an answer is no object")
            if "do" in answer:
                self.serve(answer)
            elif "raised" in answer:
                raise self._raised_there(self, answer["raised"])
            else:
                break
        with _room_for_deep_values():
            return _read_answer(values, given, answer)

    def serve(self, message: dict[str, Any]) -> None:
        """Do what the other side asks for, and answer."""
        values = self.values()
        try:
            with _room_for_deep_values():
                args = [values.read(value) for value in message["args"]]
                kwargs = {name: values.read(value) for name, value in message["named"].items()}
                number = message["with"]
                target = None if number is None else self._objects[number]
            given = list(values.containers)
            result = self._operate(message["do"], target, args, kwargs)
            with _room_for_deep_values():
                answer = {
                    "left": [values.contents(container) for container in given],
                    "result": values.write(result),
                }
        except Exception as error:
            answer = {"raised": self.describe(error)}
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            answer = {"raised": self.describe(error)}
        try:
            self.channel.send(answer)
        except MemoryError as error:
            self.channel.send({"raised": self.describe(error)})

    def keep(self, value: Any) -> Any:
        """From now on, the value goes by handle though its class is derived from a plain one."""
        if type(value).__module__ not in _COPIED_MODULES:
            self._handle(value)
        return value

    def describe(self, error: BaseException) -> dict[str, Any]:
        """An exception, as the other side can raise it."""
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        try:
            args = self.values().write(tuple(error.args))
        except Exception:
            args = {"tuple": []}
        own = type(error).__module__ != "builtins"
        return {
            "name": type(error).__name__[:80],
            "bases": names,
            "args": args,
            "text": _text_of(error),
            "self": self._handle(error) if own else None,
            "class": self._handle(type(error)) if own else None,
        }

    def _handle(self, value: Any) -> dict[str, Any]:
        back = there(value)
        if back is not None:
            return {"back": back}
        number = self._numbers.get(id(value))
        if number is None:  # objects are kept, so that no other gets the same id
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        message: dict[str, Any] = {"handle": number, "kind": type(value).__name__[:80]}
        if isinstance(value, type):
            message["kind"] = "type"
            message["name"] = value.__name__[:80]
            if issubclass(value, BaseException):
                kinds = value.__mro__
                message["bases"] = [k.__name__ for k in kinds if k.__module__ == "builtins"]
        return message

    def _find(self, message: dict[str, Any]) -> Any:
        if "back" in message:
            return self._objects[message["back"]]
        return self._stand_in(self, message)


class Remote:
    """What represents an object of the other process."""

    __slots__ = ("_handle", "_peer")


def there(value: Any) -> int | None:
    """The number by which the other process knows what ``value`` stands for, if it does."""
    if isinstance(value, type) and REMOTE_CLASS in value.__dict__:
        return int(value.__dict__[REMOTE_CLASS])
    if Remote in type(value).__mro__:
        return int(object.__getattribute__(value, "_handle"))
    return None


REMOTE_CLASS: Final = "_wmtp_class_there"


def _read_answer(values: Values, given: list[Any], answer: dict[str, Any]) -> Any:
    left = answer.get("left")
    if not isinstance(left, list) or len(left) != len(given) or "result" not in answer:
        raise MalformedMessageError("an answer lacks what was asked for")
    try:
        for container, items in zip(given, left, strict=True):
            values.fill(container, items)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessageError("a container's new content is none") from error
    return values.read(answer["result"])


def builtin_exception(names: object) -> type[Exception]:
    """The first exception of Python's own among names; RuntimeError if none is."""
    for name in names if isinstance(names, list) else ():
        kind = vars(builtins).get(name) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind
    return RuntimeError


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        return ""
    return str.__str__(text)[:_LONGEST_TEXT]


@contextlib.contextmanager
def _room_for_deep_values() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _FRAMES_FOR_VALUES))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
