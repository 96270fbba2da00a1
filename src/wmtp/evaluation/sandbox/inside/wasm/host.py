"""The server's side of WebAssembly: one instance of Python, copied for each program by fork."""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn, final

from .becoming import Becomes
from .compiled import machine_code
from .depth import MARK, larger_count_of_c
from .files import Device, File, Folder, Stream, Tree
from .module import STACK, with_stack_exported
from .wasi import Opened, Wasi

# in the instance's memory, and of this process
_STACK_BYTES: Final = 64 << 20
_NATIVE_STACK_BYTES: Final = 2 << 20
_PAGE: Final = 1 << 16
_MOST_PAGES: Final = 1 << 16
_SETTINGS: Final = f"stack {_NATIVE_STACK_BYTES}"
_INSIDE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FOR_GUESTS: Final = (
    "__init__.py", "frames.py", "operations.py", "peer.py", "program_side.py", "remote.py",
    "shield.py", "tests_side.py", "values.py",
)  # fmt: skip
_ARGUMENTS: Final = ("python", "-P", "-s", "-S", "-B", "-X", "utf8", "/judge/guest.py")
_ENVIRONMENT: Final = ("PYTHONHASHSEED=0", "LANG=C.UTF-8", "HOME=/work", "TMPDIR=/work")


@final
class Host:
    """An instance that has not begun.

    Args:
        given: the folder that ``wasmtime`` is imported from, its ``version``, Python's module
            (``python``), and a folder for machine code (``cache``).

    Raises:
        OSError: the module could not be read or compiled.
    """

    def __init__(self, given: dict[str, str]) -> None:
        sys.path.append(given["wasmtime"])
        self._wasmtime: Any = importlib.import_module("wasmtime")
        sys.path.pop()
        self.version = given["version"]
        with open(given["python"], "rb") as file:
            try:
                source = with_stack_exported(file.read())
            except ValueError as error:
                raise OSError(f"{given['python']}: {error}") from error
        made_by = f"wasmtime {self.version}, {_SETTINGS}"
        code = machine_code(source, made_by, given["cache"], lambda: self._compile(source))
        self._engine = self._new_engine()
        self._module = self._wasmtime.Module.deserialize(self._engine, code)
        self._tree = Tree()
        self._store = self._wasmtime.Store(self._engine)
        self._streams = {name: Stream(None, None) for name in ("program", "tests", "verdict")}
        self._left: Becomes | None = None

    def _new_engine(self) -> Any:
        config = self._wasmtime.Config()
        config.max_wasm_stack = _NATIVE_STACK_BYTES
        if sys.platform == "darwin":
            config.macos_use_mach_ports = False  # their thread would be missing from forks
        return self._wasmtime.Engine(config)

    def _compile(self, source: bytes) -> bytes:
        return bytes(self._wasmtime.Module(self._new_engine(), source).serialize())

    def run(self, imports: tuple[str, ...], serve: Callable[[], None]) -> NoReturn:
        """Start the instance; ``serve`` is called when it is ready, and left by ``Becomes``.

        Raises:
            OSError: it ended before it was ready.
        """
        self._lay_out(imports)
        wasi = Wasi(self._tree, list(_ENVIRONMENT), list(_ARGUMENTS), lambda: self._fork(serve))
        wasi.descriptors[0] = Opened(Stream(0, None), read=True, write=False)
        for number in (1, 2):
            wasi.descriptors[number] = Opened(Stream(None, number), read=False, write=True)
        self._wasi = wasi
        linker = self._wasmtime.Linker(self._engine)
        functions = wasi.functions()
        for wanted in self._module.imports:
            if wanted.module != "wasi_snapshot_preview1" or wanted.name not in functions:
                raise OSError(f"this Python needs {wanted.module}.{wanted.name}")
            body = _unsigned(functions[wanted.name], wanted.type)
            linker.define_func(wanted.module, wanted.name, wanted.type, body, access_caller=True)
        exports = linker.instantiate(self._store, self._module).exports(self._store)
        wasi.memory = exports["memory"]
        # behind all that Python knows of, so that it is never given away as memory
        pages = wasi.memory.grow(self._store, _STACK_BYTES // _PAGE)
        exports[STACK].set_value(self._store, pages * _PAGE + _STACK_BYTES)
        try:
            exports["_start"](self._store)
        except BaseException as error:
            if self._left is None:
                raise OSError(f"WebAssembly's Python did not start: {error}") from error
            with contextlib.suppress(OSError):
                why = str(error).rstrip().rpartition("\n")[2].strip()
                os.write(2, f"Python ended: {why}\n".encode())
            os.abort()  # as a Python that crashes does
        os._exit(1)

    def _lay_out(self, imports: tuple[str, ...]) -> None:
        devices = self._tree.root.below("dev")
        for kind in ("null", "zero", "random", "never", "processor_time"):
            devices.entries[kind] = Device(kind)
        devices.entries["urandom"] = devices.entries["random"]
        judge = self._tree.root.below("judge")
        judge.entries.update(self._streams)
        judge.entries["mark"] = File(str(MARK).encode(), read_only=True)
        judge.entries["imports"] = File(json.dumps(imports).encode(), read_only=True)
        self._copy(os.path.join(_INSIDE, "wasm", "guest.py"), judge)
        inside = judge.below("inside")
        for name in _FOR_GUESTS:
            self._copy(os.path.join(_INSIDE, name), inside)
        self._tree.root.entries["work"] = Folder(self._tree.root, writable=True)

    def _copy(self, path: str, folder: Folder) -> None:
        with open(path, "rb") as file:
            folder.entries[os.path.basename(path)] = File(file.read(), read_only=True)

    def _fork(self, serve: Callable[[], None]) -> None:
        memory = self._wasi.memory
        deeper = larger_count_of_c(bytes(memory.read(self._store)))
        if deeper is not None:
            memory.write(self._store, bytearray(deeper[1]), deeper[0])
        try:
            serve()
        except Becomes as part:
            self._left = part  # with its frames, and what they hold open
            self._begin(part)

    def _begin(self, part: Becomes) -> None:
        limits = part.limits
        self._tree.most_bytes, self._tree.most_files = limits["file_bytes"], limits["files"]
        pages = self._wasi.memory.size(self._store) + limits["memory_bytes"] // _PAGE
        self._store.set_limits(memory_size=min(pages, _MOST_PAGES) * _PAGE)
        for name, (reading, writing) in part.streams.items():
            self._streams[name].reading, self._streams[name].writing = reading, writing
        judge = self._tree.root.below("judge")  # without what the server has put there
        job = json.dumps({"part": part.part, "source": part.source}).encode()
        judge.entries["job"] = File(job, read_only=True)


def _unsigned(function: Callable[..., Any], kind: Any) -> Callable[..., Any]:
    """A function that is given its numbers without signs."""
    masks = [0xFFFFFFFF if str(one) == "i32" else 0xFFFFFFFFFFFFFFFF for one in kind.params]
    gives = bool(kind.results)

    def body(caller: Any, *numbers: int) -> int | None:
        result = function(caller, *(n & mask for n, mask in zip(numbers, masks, strict=True)))
        return int(result) if gives else None

    return body
