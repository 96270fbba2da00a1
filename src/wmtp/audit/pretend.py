"""A process that takes itself for one on a Mac, as far as PyTorch asks.

Tensors without numbers can be on ``mps`` anywhere, but autograd asks that device for its streams.
``fake_mps.cpp`` answers. It is compiled once for each version of PyTorch and kept in the user's
cache. Only a fresh process should pretend: ``apart.py`` starts one.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from wmtp.errors import DeviceError

TESTED: Final = ("2.13",)
"""Versions of PyTorch whose sources were read for this; what it asks of a device may change."""

PRETENDED: Final = "mps"

SOURCE: Final = Path(__file__).with_name("fake_mps.cpp")
COMPILERS: Final = ("g++", "clang++", "c++")
_HEADER = "ATen/detail/MPSHooksInterface.h"

_kept: list[Any] = []
"""What must live as long as the process."""


def why_not() -> str | None:
    """What keeps this machine from pretending, None if nothing does; a Mac has no need to."""
    if sys.platform == "darwin":
        return None
    minor = ".".join(torch.__version__.split(".")[:2])
    if minor not in TESTED:
        return f"torch is {torch.__version__}; the audit was tested with {' and '.join(TESTED)}"
    if not (_include() / _HEADER).is_file():
        return "this build of torch comes without its C++ headers: install it from a wheel"
    if _library().is_file() or _compiler() is not None:
        return None
    return f"there is no C++ compiler ({', '.join(COMPILERS)}): install g++"


def pretend() -> None:
    """From now on this process has an MPS device that computes nothing.

    Raises:
        DeviceError: this machine lacks what that takes.
    """
    if sys.platform == "darwin" or _kept:
        return
    problem = why_not()
    if problem is not None:
        raise DeviceError(f"mps cannot be simulated here: {problem}.")
    library = _library()
    if not library.is_file():
        _compile(library)
    _kept.append(ctypes.CDLL(str(library)))
    # what this build leaves out; autocast and GradScaler ask for it
    bindings: Any = torch._C
    bindings._has_mps = True
    bindings._mps_is_available = lambda: True
    bindings._mps_is_on_macos_or_newer = lambda _major, _minor: True
    _kept.append(_attention_as_on_a_mac())


def _compile(library: Path) -> None:
    compiler = _compiler()
    assert compiler is not None
    library.parent.mkdir(parents=True, exist_ok=True)
    lib = Path(torch.__file__).parent / "lib"
    includes = [f"-I{_include()}", f"-I{_include() / 'torch/csrc/api/include'}"]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        done = subprocess.run(
            [compiler, "-O0", "-std=c++20", "-shared", "-fPIC", *includes, str(SOURCE),
             "-o", str(made), f"-L{lib}", "-lc10", "-ltorch_cpu"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            raise DeviceError(
                f"mps cannot be simulated here: {compiler} could not compile {SOURCE.name} "
                f"({(lines or ['no message'])[0].strip()})."
            )
        made.replace(library)  # whole or not at all: another process may look for it


def _library() -> Path:
    """Where the compiled answers are kept: one for each source, PyTorch and kind of machine."""
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"fake_mps-{source}-torch{torch.__version__}-{os.uname().machine}.so"
    return cache / "wmtp" / name


def _include() -> Path:
    return Path(torch.__file__).parent / "include"


@functools.cache
def _compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def _attention_as_on_a_mac() -> torch.library.Library:
    """Send attention where a build for Macs does, which others leave out when compiled.

    With gradients, or with dropout, it is the plain formula; without, one Metal kernel.

    Source:
        ``aten/src/ATen/native/transformers/attention.cpp`` of PyTorch 2.13, where ``USE_MPS``.
    """
    aten = torch.ops.aten
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            hidden = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = hidden.masked_fill(attn_mask.logical_not(), float("-inf"))
        trained = any(one.requires_grad for one in (query, key, value))
        if (torch.is_grad_enabled() and trained) or dropout_p > 0:
            mixed, _ = aten._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        else:
            if enable_gqa and query.size(-3) != key.size(-3):
                groups = query.size(-3) // key.size(-3)
                key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
            mixed, _ = aten._scaled_dot_product_attention_math_for_mps(
                query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale
            )
        result: Tensor = mixed
        return result

    name = "scaled_dot_product_attention"
    library.impl(name, attention, "AutogradMPS")  # type: ignore[no-untyped-call]
    return library
