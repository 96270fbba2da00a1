"""The machine a run trains on; the only file that knows CUDA, MPS and CPU."""

import importlib.util
import json
import platform
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, final

import numpy as np
import psutil
import torch
from torch import Tensor

from wmtp.errors import CheckpointError, DeviceError
from wmtp.loss import Workspace
from wmtp.loss.pieces import rounded_up
from wmtp.runtime.heap import give_freed_memory_back
from wmtp.runtime.machine import peak_resident_bytes

Kind = Literal["cuda", "mps", "cpu"]
ComputeBackend = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["fp32", "bf16", "fp16"]

Found = TypeVar("Found")

MEBIBYTE = 1024**2

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Dense 16-bit tensor throughput with fp32 accumulation, in FLOP/s, from NVIDIA's data sheets and
# architecture papers (their headline figures with sparsity are twice these). A row matches when
# all its words are in the name that the driver gives; the first match counts.
_PEAK_FLOPS: tuple[tuple[frozenset[str], float], ...] = (
    (frozenset({"B200"}), 2250e12),
    (frozenset({"H200"}), 989e12),
    (frozenset({"GH200"}), 989e12),
    (frozenset({"H100", "NVL"}), 835e12),
    (frozenset({"H100", "PCIe"}), 756e12),
    (frozenset({"H100"}), 989e12),
    (frozenset({"A100"}), 312e12),
    (frozenset({"L40S"}), 362e12),
    (frozenset({"L40"}), 181e12),
    (frozenset({"L4"}), 121e12),
    (frozenset({"A40"}), 149.7e12),
    (frozenset({"A10"}), 125e12),
    (frozenset({"A6000"}), 154.8e12),
    (frozenset({"4090"}), 165.2e12),
    (frozenset({"3090"}), 71e12),
    (frozenset({"V100"}), 125e12),
    (frozenset({"T4"}), 65e12),
)


def choose_device(compute_backend: ComputeBackend, mixed_precision: Precision) -> "Device":
    """Pick the device that the config asks for, or the best there is for ``auto``.

    Raises:
        DeviceError: this machine lacks the device, or the device lacks the precision.
    """
    kinds = available_kinds()
    if compute_backend == "auto":
        kind = kinds[0]
    elif compute_backend in kinds:
        kind = compute_backend
    else:
        raise DeviceError(
            f"device is '{compute_backend}', but this machine has only {', '.join(kinds)}. "
            "Set devices.compute_backend: auto."
        )
    _check_precision(kind, mixed_precision)
    return describe_device(kind, mixed_precision)


def available_kinds() -> tuple[Kind, ...]:
    """What this machine can compute on, fastest first; the CPU is always there."""
    kinds: list[Kind] = []
    if torch.cuda.is_available():
        kinds.append("cuda")
    if torch.backends.mps.is_available():
        kinds.append("mps")
    return (*kinds, "cpu")


@final
@dataclass(frozen=True)
class Device:
    """One device and what is best done on it; made by ``choose_device``."""

    kind: Kind
    precision: Precision
    fused_adamw: bool
    """AdamW has a fused kernel here (2 to 4 times faster than the loop over parameters)."""
    exact_counts: bool
    """Reading a count back costs nothing: no queue of kernels has to run dry first."""
    pin_memory: bool
    """Batches in page-locked memory can be copied while the device computes."""
    loss_chunk_rows: int
    """Rows of logits (tokens times heads) in one chunk of the loss, before the workspace's cap."""
    loss_workspace_bytes: int
    """Most memory that one chunk of logits may take."""
    shape_parts: int | None = None
    """In how many sizes a length that varies may come, where each new shape costs a compilation."""
    loss_kernel: bool = False
    """The loss's softmax step is one Triton kernel here."""
    tiled_attention: bool = False
    """Attention is to be made in tiles, for want of a fused kernel that spares memory: with
    gradients MPS falls to a path that keeps two tensors of ``B * N * S * T`` numbers, and without
    them its kernel still returns one."""

    @property
    def torch_device(self) -> torch.device:
        """What tensors and modules are moved to."""
        return torch.device(self.kind)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the matrix products; parameters and optimizer state stay float32."""
        return _DTYPES[self.precision]

    @property
    def loss_product_dtype(self) -> torch.dtype | None:
        """Of the loss's logits and products; None means at least float32.

        Tensor cores need 16 bits. Elsewhere float32 costs little, and its sums are exact.
        """
        return self.compute_dtype if self.kind == "cuda" else None

    @property
    def sum_dtype(self) -> torch.dtype:
        """The widest float there is, for sums over many targets; Apple's chips lack float64."""
        return torch.float32 if self.kind == "mps" else torch.float64

    def zeros(self, *shape: int) -> Tensor:
        """Zeros on the device to sum into, ``sum_dtype``."""
        return torch.zeros(shape, dtype=self.sum_dtype, device=self.torch_device)

    @property
    def name(self) -> str:
        """The chip's name, for run.yaml and reports."""
        if self.kind == "cuda":
            return str(torch.cuda.get_device_name())
        return f"{platform.processor() or platform.machine()} ({self.kind})"

    def rounded_length(self, length: int, longest: int) -> int:
        """How many positions to compute where so many are needed: few lengths, or just those."""
        return rounded_up(length, longest, self.shape_parts)

    def stand_in(self) -> "Device":
        """The CPU with this device's habits, to simulate it where there is none.

        Its kernels are the CPU's, which keep for the backward pass what the device's do, attention
        in one piece no more than attention in tiles. Page-locked memory is left out.
        """
        return replace(self, kind="cpu", pin_memory=False, loss_kernel=False, tiled_attention=False)

    def loss_workspace(self, chunk_rows: int | None = None) -> Workspace:
        """Scratch memory of the loss as this device likes it; keep one for the run."""
        return Workspace(
            self.loss_workspace_bytes,
            chunk_rows or self.loss_chunk_rows,
            exact_counts=self.exact_counts,
            product_dtype=self.loss_product_dtype,
            shape_parts=self.shape_parts,
            kernel=self.loss_kernel,
        )

    def autocast(self) -> AbstractContextManager[None]:
        """Context in which the forward pass runs at ``precision``; nothing at all for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.kind, dtype=self.compute_dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scaler that keeps fp16 gradients from vanishing; passes everything through otherwise."""
        return torch.amp.GradScaler(self.kind, enabled=self.precision == "fp16")

    @property
    def process_group_backend(self) -> Literal["nccl", "gloo"]:
        """What carries tensors of this device from rank to rank."""
        return "nccl" if self.kind == "cuda" else "gloo"

    def join(self, local_rank: int) -> None:
        """Make this process one of several: take the device that is its own.

        Raises:
            DeviceError: the device or the precision is for single processes, or there are fewer
                devices than ranks.
        """
        if self.kind == "mps":
            raise DeviceError(
                "devices.compute_backend is mps, which trains in a single process. Start without "
                "torchrun, or set compute_backend: cpu."
            )
        if self.precision == "fp16":
            raise DeviceError(
                "devices.mixed_precision is fp16, whose loss scale is for single processes. Set "
                "bf16 or fp32 to train with several ranks."
            )
        if self.kind == "cuda":
            found = torch.cuda.device_count()
            if local_rank >= found:
                raise DeviceError(
                    f"rank {local_rank} of this machine has no device: there are {found}. Start "
                    f"torchrun with --nproc-per-node {found}."
                )
            torch.cuda.set_device(local_rank)

    def check_training(self, *, sliced: bool, compiled: bool) -> None:
        """Refuse what cannot be trained with here, before anything is loaded.

        Raises:
            DeviceError: the model is to be in slices (``devices.fsdp``), or compiled in 16 bits,
                and this is MPS.
        """
        if self.kind != "mps":
            return
        if sliced:
            raise DeviceError(
                "devices.fsdp.enabled is true, but the device is mps, which trains in a single "
                "process: there is nothing to slice. Set devices.fsdp.enabled: false."
            )
        if compiled and self.precision != "fp32":
            raise DeviceError(
                f"devices.use_torch_compile is true with {self.precision} on mps, whose compiled "
                "graphs fail on mixed dtypes. Set use_torch_compile: false, or mixed_precision: "
                "fp32."
            )

    def is_out_of_memory(self, error: RuntimeError) -> bool:
        """Whether an error says that an allocation failed; less memory may still be had."""
        if isinstance(error, torch.OutOfMemoryError):
            return True
        # neither the CPU's allocator nor that of MPS has an error of its own
        said = "MPS backend out of memory" if self.kind == "mps" else "can't allocate memory"
        return said in str(error)

    def empty_cache(self) -> None:
        """Give memory that is held but not used back to the device, after it ran out."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()
        elif self.kind == "mps":
            torch.mps.empty_cache()
        else:
            give_freed_memory_back()

    def save_memory_if_short_for(self, peak: int) -> bool:
        """Give freed memory back at once, on a CPU with less than twice what a run needs.

        That takes up to a third more time; else the C library may keep as much as the run uses.

        Args:
            peak: bytes that the run will hold, roughly.

        Returns:
            Whether it will be given back.
        """
        if self.kind != "cpu" or peak * _ROOMY <= psutil.virtual_memory().available:
            return False
        return give_freed_memory_back()

    def memory_pressure(self) -> float | None:
        """How much the driver holds, as a share of what the system recommends to hold at most.

        None where nothing is recommended: there memory that runs out fails at once, while a Mac
        begins to swap long before.
        """
        if self.kind != "mps":
            return None
        return torch.mps.driver_allocated_memory() / torch.mps.recommended_max_memory()

    def free_scratch(self) -> None:
        """Wait, where scratch memory of finished work is given back only to one who waits."""
        if self.kind == "mps":
            torch.mps.synchronize()

    def synchronize(self) -> None:
        """Wait until the device has done everything it was given, as timing needs it."""
        if self.kind == "cuda":
            torch.cuda.synchronize()
        elif self.kind == "mps":
            torch.mps.synchronize()

    def peak_memory_bytes(self) -> int:
        """Most memory held since ``reset_peak_memory``.

        Device memory where there is a device; MPS keeps no peak, but its driver figure counts
        what the allocator holds on to and so falls only when caches are emptied. On the CPU the
        resident memory of the process, which macOS cannot reset.
        """
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated()
        if self.kind == "mps":
            return torch.mps.driver_allocated_memory()
        return peak_resident_bytes()

    def reset_peak_memory(self) -> None:
        """Start a new peak where the system can: CUDA, and the CPU under Linux."""
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif self.kind == "cpu":
            with suppress(OSError):  # absent outside Linux, forbidden in some containers
                Path("/proc/self/clear_refs").write_text("5")

    def held_memory_bytes(self) -> int:
        """Memory that the run holds now: of the device where there is one, else of the process."""
        if self.kind == "cuda":
            return torch.cuda.memory_allocated()
        if self.kind == "mps":
            return torch.mps.driver_allocated_memory()
        return psutil.Process().memory_info().rss

    @property
    def compile_is_trusted(self) -> bool:
        """Whether ``devices.use_torch_compile`` may be expected to train as without it.

        Inductor's Metal code is not tested for training, and mixing float32 with bfloat16 in it
        has given wrong numbers.
        """
        return self.kind != "mps"

    def recommended_memory_bytes(self) -> int | None:
        """Memory of the device that a run may take; None for the CPU, which shares the machine's.

        On MPS what Metal recommends, about three quarters of the machine's.
        """
        if self.kind == "cuda":
            return int(torch.cuda.get_device_properties(self.torch_device).total_memory)
        return torch.mps.recommended_max_memory() if self.kind == "mps" else None

    def peak_flops(self) -> float | None:
        """Dense FLOP/s that the chip's maker names for ``precision``, None where none is known."""
        if self.kind != "cuda" or self.precision == "fp32":
            return None
        return named_peak_flops(self.name)

    def seed(self, seed: int) -> None:
        """Seed every generator that ``rng_state`` holds."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # the CPU's and every device's

    def rng_state(self) -> dict[str, Tensor]:
        """State of every generator a run may draw from, as uint8 tensors on the CPU."""
        state = {"torch": torch.get_rng_state(), "python": _python_state(), "numpy": _numpy_state()}
        if self.kind == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        elif self.kind == "mps":
            state["mps"] = torch.mps.get_rng_state()
        return state

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Put every generator back to where ``rng_state`` found it.

        A state saved on another kind of device has no entry for this one's generator, which then
        stays as seeded: equality to the bit is not promised across kinds of device.

        Raises:
            CheckpointError: a state is missing or is not one of this version of torch.
        """
        try:
            torch.set_rng_state(state["torch"])
            _set_python_state(state["python"])
            _set_numpy_state(state["numpy"])
            if self.kind == "cuda" and "cuda" in state:
                torch.cuda.set_rng_state(state["cuda"])
            elif self.kind == "mps" and "mps" in state:
                torch.mps.set_rng_state(state["mps"])
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's random number state cannot be used ({error!r}). "
                "Resume with the version of torch that wrote it."
            ) from error


def can_record(device: torch.device) -> bool:
    """Whether a sequence of kernels can be recorded there and replayed as a whole."""
    return device.type == "cuda"


@final
class RecordedStep(Generic[Found]):
    """A step that CUDA replays in one call; inputs and outputs keep their memory.

    Args:
        step: it may be repeated without harm, because it runs some times to warm up.
        inputs: of the shapes that all later ones have.
    """

    def __init__(self, step: Callable[..., Found], inputs: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):  # compiles, and lets libraries take the memory that they keep
                step(*self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = step(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Found:
        """What the step gives; good until the next call."""
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return self._outputs


_ROOMY: Final = 2
"""What is freed and kept may be as much as what is used."""


@dataclass(frozen=True)
class MemoryLimit:
    """How much a run may be planned to hold.

    Attributes:
        bytes: the limit.
        reason: what it is a share of, for a person.
    """

    bytes: int
    reason: str


_PLANNED_SHARE: dict[Kind, float] = {"mps": 0.75, "cuda": 0.9, "cpu": 0.9}
"""The rest is for what allocators hold in reserve, and on MPS and the CPU for other programs."""

_LARGEST_SMALL_MAC = 32 * 2**30


def memory_limit(kind: Kind, machine_gibibytes: float | None = None) -> MemoryLimit | None:
    """The most that a run on a kind of device should be planned to hold.

    On MPS it is a share of what Metal recommends; of a Mac that is not this machine, that is two
    thirds of its memory, or three quarters above 32 GiB.

    Args:
        kind: of device.
        machine_gibibytes: memory of the Mac, of the GPU, or of the machine; None asks this one.

    Returns:
        None if nothing is given and this machine has no such device.
    """
    share = _PLANNED_SHARE[kind]
    if machine_gibibytes is not None:
        total = int(machine_gibibytes * 2**30)
        if kind == "mps":
            total = total * 3 // 4 if total > _LARGEST_SMALL_MAC else total * 2 // 3
    elif kind not in available_kinds():
        return None
    else:
        recommended = describe_device(kind, "fp32").recommended_memory_bytes()
        total = recommended or psutil.virtual_memory().total
    whose = {"mps": "that Metal recommends", "cuda": "of the GPU", "cpu": "of the machine"}[kind]
    return MemoryLimit(int(total * share), f"{share:.0%} of the {total / 2**30:.1f} GiB {whose}")


def named_peak_flops(name: str) -> float | None:
    """Dense 16-bit FLOP/s of the CUDA chip of that name, None if it is not in the table.

    Example:
        >>> named_peak_flops("NVIDIA A100-SXM4-80GB")
        312000000000000.0
    """
    words = set(name.replace("-", " ").split())
    if "Laptop" in words:  # the same numbers as the desktop chips, but slower
        return None
    return next((flops for needed, flops in _PEAK_FLOPS if needed <= words), None)


def _check_precision(kind: Kind, precision: Precision) -> None:
    if kind == "cpu" and precision == "fp16":
        raise DeviceError(
            "devices.mixed_precision is 'fp16', but the device is cpu, which has no fast fp16. "
            "Set devices.mixed_precision: bf16 or fp32."
        )
    if kind == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(False):
        raise DeviceError(
            f"devices.mixed_precision is 'bf16', which {torch.cuda.get_device_name()} lacks. "
            "Set devices.mixed_precision: fp16 or fp32."
        )
    if kind == "mps" and precision == "bf16" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise DeviceError(
            "devices.mixed_precision is 'bf16', which needs macOS 14 on mps. "
            "Set devices.mixed_precision: fp16 or fp32."
        )


def describe_device(kind: Kind, precision: Precision) -> Device:
    """What is best on a kind of device, whether or not this machine has one."""
    if kind == "cuda":
        # fewer tokens than about 1024 in a chunk (times 4 heads) leave a big GPU waiting
        kernel = importlib.util.find_spec("triton") is not None  # not on every system
        return Device(kind, precision, True, False, True, 4096, 512 * MEBIBYTE, loss_kernel=kernel)
    if kind == "mps":
        return Device(
            kind,
            precision,
            True,
            False,
            False,
            2048,
            256 * MEBIBYTE,
            shape_parts=4,
            tiled_attention=True,
        )
    # a chunk that stays near the caches: 256 to 512 rows measured best
    return Device(kind, precision, True, True, False, 512, 256 * MEBIBYTE)


def _python_state() -> Tensor:
    return _bytes_tensor(random.getstate())


def _set_python_state(state: Tensor) -> None:
    version, words, gauss = _from_bytes_tensor(state)
    random.setstate((version, tuple(words), gauss))


def _numpy_state() -> Tensor:
    name, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert not isinstance(words, str)
    return _bytes_tensor((name, np.asarray(words).tolist(), position, has_gauss, gauss))


def _set_numpy_state(state: Tensor) -> None:
    name, words, position, has_gauss, gauss = _from_bytes_tensor(state)
    np.random.set_state((name, np.array(words, dtype=np.uint32), position, has_gauss, gauss))


def _bytes_tensor(value: Any) -> Tensor:
    """JSON rather than a pickle, so that nothing pickled is ever read back."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes_tensor(state: Tensor) -> Any:
    return json.loads(bytes(state.cpu().numpy()))
