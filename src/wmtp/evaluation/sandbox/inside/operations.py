"""What can be done with an object because the other side asked for it."""

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any, Final

from .values import plain_value

_DIRECT: Final[dict[str, Callable[..., Any]]] = {
    "call": lambda target, *args, **kwargs: target(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "next": next,
    "send": lambda target, value: target.send(value),
    "iter": iter,
    "value": plain_value,
    "isinstance": lambda target, value: isinstance(value, target),
    "issubclass": lambda target, value: issubclass(value, target),
    "enter": lambda target: type(target).__enter__(target),
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "contains": operator.contains,
    "and": operator.and_,
    "or": operator.or_,
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
}
_BUILT_IN: Final = (
    "len", "bool", "hash", "repr", "str", "format", "abs", "round", "int", "float", "complex",
    "reversed", "divmod", "pow",
)  # fmt: skip
_OPERATORS: Final = (
    "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod",
    "matmul", "lshift", "rshift", "xor", "neg", "pos", "invert", "index",
)  # fmt: skip
OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    **_DIRECT,
    **{name: vars(builtins)[name] for name in _BUILT_IN},
    **{name: vars(operator)[name] for name in _OPERATORS},
}
_IN_PLACE: Final = frozenset(
    ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "imatmul", "ilshift", "irshift",
     "ixor", "ipow", "iand", "ior")
)  # fmt: skip


def perform(operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Do what an operation's name says.

    Raises:
        ValueError: there is no such operation.
    """
    if operation in OPERATIONS:
        return OPERATIONS[operation](target, *args, **kwargs)
    if operation in _IN_PLACE:
        return vars(operator)[f"__{operation}__"](target, *args)
    reflected = operation[1:]
    if operation.startswith("r") and reflected in OPERATIONS:
        return OPERATIONS[reflected](args[0], target)
    raise ValueError(f"no operation {operation!r}")
