"""Which operations have a kernel for MPS, as the installed PyTorch says of itself.

Every wheel, whatever it was built for, carries the list that its kernels were generated from.
"""

import functools
from importlib.resources import files
from typing import Any, Final, Literal

import yaml

Kernel = Literal["metal", "composite", "cpu"]
"""A Metal kernel; operations that are put together from others; or the CPU, silently."""

ON_THE_CPU: Final = frozenset(
    {"_slow_conv2d_forward", "embedding_renorm_", "linalg_svd", "linalg_svd.U"}
)
"""What ``MPSFallback.mm`` registers for MPS, and runs on the CPU."""

_COMPOSITE: Final = (
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
)


@functools.cache
def kernels() -> dict[str, Kernel]:
    """What runs each operation of ATen on MPS; one that nothing runs is absent.

    Names have their overload, as in ``add.Tensor``. Read against the macOS build of 2.13.0, which
    registers each of these and no others but ``ON_THE_CPU``.
    """
    entries = _entries()
    found: dict[str, Kernel] = {}
    of_mps = {name for name, entry in entries.items() if "MPS" in _keys(entry)}
    for name, entry in entries.items():
        keys = _keys(entry)
        # of a structured operation the out= variant alone is listed, and stands for the others
        if name in of_mps or entry.get("structured_delegate") in of_mps:
            found[name] = "metal"
        # without a dispatch table the C++ function of that name calls other operations
        elif keys & set(_COMPOSITE) or not (keys or "structured_delegate" in entry):
            found[name] = "composite"
    return found | dict.fromkeys(ON_THE_CPU, "cpu")


def _entries() -> dict[str, dict[str, Any]]:
    listed = files("torchgen") / "packaged" / "ATen" / "native" / "native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = yaml.load(listed.read_text(encoding="utf-8"), Loader=loader)
    return {str(entry["func"]).partition("(")[0]: entry for entry in entries}


def _keys(entry: dict[str, Any]) -> set[str]:
    """The dispatch keys that an entry names kernels for."""
    table = entry.get("dispatch") or {}
    return {key.strip() for keys in table for key in str(keys).split(",")}
