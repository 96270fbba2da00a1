"""Values as tagged plain data: what can be copied is copied, the rest goes by handle.

Numbers, texts, containers and a few classes of the standard library travel by value; a subclass of
one of them by the value of its base. Everything else (functions, classes, instances, generators)
stays where it is and is known to the other side by a number. Lists, dictionaries, sets and the
like are numbered in the order in which they are met, so that one that occurs twice stays one, and
what a call did to them can be written back.
"""

import builtins
import collections
import datetime
import decimal
import enum
import fractions
import functools
from collections.abc import Callable, Container, Iterable
from typing import Any, Final, final

from .frames import MalformedMessageError

_DEEPEST: Final = 400
_JSON_INTEGER: Final = 1 << 53

# mutable containers that keep their class; others become the first of list, dict, set they are
_CONTAINERS: Final[dict[str, type]] = {
    "list": list, "dict": dict, "set": set, "bytearray": bytearray,
    "deque": collections.deque, "Counter": collections.Counter,
    "OrderedDict": collections.OrderedDict, "defaultdict": collections.defaultdict,
}  # fmt: skip
_NAMES: Final = {kind: name for name, kind in _CONTAINERS.items()}
_DATES: Final[dict[str, Any]] = {
    "date": datetime.date, "datetime": datetime.datetime, "time": datetime.time,
}  # fmt: skip


@final
class Values:
    """Writes values and reads them, for one message and its answer.

    Args:
        handle: what is written for something that stays here.
        stand_in: what is read for something that stays there.
        kept: identities of objects that stay here whatever they are.
    """

    def __init__(
        self,
        handle: Callable[[Any], Any],
        stand_in: Callable[[Any], Any],
        kept: Container[int] = frozenset(),
    ) -> None:
        self._handle, self._stand_in, self._kept = handle, stand_in, kept
        self.containers: list[Any] = []
        self._numbers: dict[int, int] = {}

    # writing ------------------------------------------------------------------------------------

    def write(self, value: Any, depth: int = 0) -> Any:
        """The value as JSON.

        Raises:
            RecursionError: it is nested too deeply.
        """
        kind = type(value)
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if kind is int:
            small = -_JSON_INTEGER < value < _JSON_INTEGER
            return value if small else {"int": hex(value)}
        if id(value) in self._kept and kind.__module__ != "builtins":
            return self._handle(value)
        if depth > _DEEPEST:
            raise RecursionError("a value is nested too deeply")
        for base in (list, dict, set, bytearray, collections.deque):
            if base in kind.__mro__:
                return self._write_container(value, base, depth)
        if tuple in kind.__mro__:
            items = [self.write(item, depth + 1) for item in tuple.__iter__(value)]
            fields = kind.__dict__.get("_fields")
            if type(fields) is tuple and len(fields) == len(items):
                return {"named": [kind.__name__, list(fields)], "items": items}
            return {"tuple": items}
        if frozenset in kind.__mro__:
            return {
                "frozenset": [self.write(item, depth + 1) for item in frozenset.__iter__(value)]
            }
        return self._write_atom(value, kind)

    def _write_atom(self, value: Any, kind: type) -> Any:
        if enum.Enum not in kind.__mro__:
            for base, plain in _PLAIN.items():
                if base in kind.__mro__:
                    return self.write(plain(value)) if kind is not base else _ATOMS[base](value)
        if value is ...:
            return {"constant": "Ellipsis"}
        if value is NotImplemented:
            return {"constant": "NotImplemented"}
        if kind is range:
            return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
        if kind is decimal.Decimal:
            return {"decimal": str(value)}
        if kind is fractions.Fraction:
            return {"fraction": [hex(value.numerator), hex(value.denominator)]}
        if kind in _DATES.values():
            return {"date": [kind.__name__, value.isoformat()]}
        if kind is datetime.timedelta:
            return {"timedelta": [value.days, value.seconds, value.microseconds]}
        if kind is slice:
            return {"slice": [self.write(part) for part in (value.start, value.stop, value.step)]}
        if kind is type and value.__module__ == "builtins":
            name = value.__name__
            if getattr(builtins, name, None) is value:
                return {"type": name}
        return self._handle(value)

    def _write_container(self, value: Any, base: type, depth: int) -> Any:
        number = self._numbers.get(id(value))
        if number is not None:
            return {"same": number}
        self._numbers[id(value)] = len(self.containers)
        self.containers.append(value)
        kind = type(value)
        message = {"new": _NAMES.get(kind, base.__name__)}
        if kind is collections.deque:
            message["most"] = value.maxlen
        if kind is collections.defaultdict:
            message["default"] = self.write(value.default_factory)
        message["items"] = self.contents(value, depth)
        return message

    def contents(self, value: Any, depth: int = 0) -> Any:
        """What a mutable container holds, read past any method that its class may have replaced."""
        kind = type(value)
        if dict in kind.__mro__:
            return [
                [self.write(key, depth + 1), self.write(dict.__getitem__(value, key), depth + 1)]
                for key in list(_dict_base(kind).__iter__(value))
            ]
        if bytearray in kind.__mro__:
            return bytes(value).hex()
        base = next(b for b in (list, set, collections.deque) if b in kind.__mro__)
        return [self.write(item, depth + 1) for item in list(base.__iter__(value))]

    # reading ------------------------------------------------------------------------------------

    def read(self, message: Any) -> Any:
        """The value of what the other side wrote.

        Raises:
            MalformedMessageError: nothing that ``write`` writes.
        """
        try:
            return self._read(message)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration,
                ArithmeticError, RecursionError) as error:  # fmt: skip
            raise MalformedMessageError(f"{type(error).__name__} in a value") from error

    def _read(self, message: Any) -> Any:
        if message is None or isinstance(message, bool | str | int | float):
            return message
        tag, content = next(iter(message.items()))
        if tag == "new":
            return self._read_container(content, message)
        if tag == "same":
            return self.containers[content]
        if tag == "named":
            return _named(content[0], *content[1])(*map(self._read, message["items"]))
        if tag in ("handle", "back"):
            return self._stand_in(message)
        return _READERS[tag](self._read, content)

    def _read_container(self, name: str, message: dict[str, Any]) -> Any:
        if name == "deque":
            value: Any = collections.deque(maxlen=message["most"])
        elif name == "defaultdict":
            value = collections.defaultdict(self._read(message["default"]))
        else:
            value = _CONTAINERS[name]()
        self._numbers[id(value)] = len(self.containers)
        self.containers.append(value)
        self.fill(value, message["items"])
        return value

    def fill(self, value: Any, items: Any) -> None:
        """Give a container what the other side's copy holds now."""
        if isinstance(value, bytearray):
            value[:] = bytes.fromhex(items)
        elif isinstance(value, dict):
            pairs = [(self._read(key), self._read(one)) for key, one in items]
            value.clear()
            base = _dict_base(type(value))
            for key, one in pairs:
                base.__setitem__(value, key, one)
        else:
            listed = [self._read(item) for item in items]
            value.clear()
            value.update(listed) if isinstance(value, set) else value.extend(listed)


def _dict_base(kind: type) -> type[dict[Any, Any]]:
    """The class of Python's own whose methods keep an order that dict's know nothing of."""
    return collections.OrderedDict if collections.OrderedDict in kind.__mro__ else dict


@functools.lru_cache(maxsize=256)
def _named(name: str, *fields: str) -> Any:
    return collections.namedtuple(name, fields)


def _of_strings(make: Callable[..., Any]) -> Callable[[Any, list[str]], Any]:
    return lambda read, content: make(*(int(part, 16) for part in content))


# exact plain values of subclasses, taken past any method that the subclass may have replaced
_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    bool: lambda value: value,
    int: int.__index__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes.__add__(value, b""),
    complex: lambda value: complex.__add__(value, 0j),
}
_ATOMS: Final[dict[type, Callable[[Any], Any]]] = {
    bytes: lambda value: {"bytes": value.hex()},
    complex: lambda value: {"complex": [value.real, value.imag]},
}
_READERS: Final[dict[str, Callable[[Callable[[Any], Any], Any], Any]]] = {
    "int": lambda read, content: int(content, 16),
    "tuple": lambda read, content: tuple(map(read, content)),
    "frozenset": lambda read, content: frozenset(map(read, content)),
    "bytes": lambda read, content: bytes.fromhex(content),
    "complex": lambda read, content: complex(float(content[0]), float(content[1])),
    "constant": lambda read, content: {"Ellipsis": ..., "NotImplemented": NotImplemented}[content],
    "range": _of_strings(range),
    "fraction": _of_strings(fractions.Fraction),
    "decimal": lambda read, content: decimal.Decimal(content),
    "date": lambda read, content: _DATES[content[0]].fromisoformat(content[1]),
    "timedelta": lambda read, content: datetime.timedelta(*content),
    "slice": lambda read, content: slice(*map(read, content)),
    "type": lambda read, content: _builtin_type(content),
}


def _builtin_type(name: str) -> type:
    found = vars(builtins)[name]
    if not isinstance(found, type):
        raise TypeError(f"{name} is no type")
    return found


def plain_value(value: Any) -> Any:
    """The value that an instance of a subclass of a plain type has without its own methods.

    Raises:
        TypeError: its class is not derived from a plain type.
    """
    kinds: Iterable[type] = type(value).__mro__
    iterables: tuple[Any, ...] = (list, tuple, set, frozenset)
    for base in iterables:
        if base in kinds:
            return base(base.__iter__(value))
    if dict in kinds:
        return {key: dict.__getitem__(value, key) for key in dict.__iter__(value)}
    for kind, plain in _PLAIN.items():
        if kind in kinds:
            return plain(value)
    raise TypeError("not derived from a plain type")
