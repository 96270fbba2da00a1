"""A module of WebAssembly as bytes: one export is added, so that Python gets a larger stack.

Builds of Python have room for some hundred nested calls of C, fewer than Python's own limit allows
for, and what overflows there ends the program. The stack's place is in a global, the first one in
modules that LLVM links, which is not exported.

Source:
    https://webassembly.github.io/spec/core/binary/modules.html
"""

from typing import Final

STACK: Final = "wmtp_stack_pointer"

_HEADER: Final = b"\0asm\1\0\0\0"
_CUSTOM, _GLOBALS, _EXPORTS = 0, 6, 7
_GLOBAL: Final = 3
_CHANGEABLE_I32: Final = b"\x7f\x01"


def with_stack_exported(source: bytes) -> bytes:
    """The module with its stack pointer exported, and without its debugging information.

    Raises:
        ValueError: it is no such module.
    """
    if not source.startswith(_HEADER):
        raise ValueError("not a module of WebAssembly")
    made, place = bytearray(_HEADER), len(_HEADER)
    found = exported = False
    while place < len(source):
        kind, start = source[place], place
        size, place = _number(source, place + 1)
        content = source[place : place + size]
        place += size
        if kind == _GLOBALS:
            count, first = _number(content, 0)
            if not count or content[first : first + 2] != _CHANGEABLE_I32:
                raise ValueError("its first global is no stack pointer")
            found = True
        if kind == _EXPORTS:
            count, first = _number(content, 0)
            name = STACK.encode()
            entry = _encoded(len(name)) + name + bytes((_GLOBAL,)) + _encoded(0)
            content = _encoded(count + 1) + content[first:] + entry
            made += bytes((kind,)) + _encoded(len(content)) + content
            exported = True
        elif kind != _CUSTOM:
            made += source[start:place]
    if not found or not exported or place != len(source):
        raise ValueError("it has no globals, exports nothing, or is half of a module")
    return bytes(made)


def _number(source: bytes, place: int) -> tuple[int, int]:
    """A number in LEB128 and the place after it."""
    number = shift = 0
    while True:
        if place >= len(source) or shift > 28:
            raise ValueError("a number without an end")
        byte = source[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def _encoded(number: int) -> bytes:
    r"""A number in LEB128.

    Example:
        >>> _encoded(300)
        b'\xac\x02'
    """
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*made, number))
