"""Every operation of a training step, run once more on the CPU with the same inputs."""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from wmtp.doctor.finding import Finding, judged

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of the largest number of an output: sums of a thousand products round differently."""

WITHOUT_VALUES = (
    "empty",
    "empty_like",
    "new_empty",
    "resize_",
    "_local_scalar_dense",
    "detach",
    "alias",
)
"""Operations that give no numbers of their own: what lies in new memory, and what is read out."""


@final
class Comparison(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each new operation of a block on the CPU as well, before the device runs it.

    An operation counts once for each combination of dtypes and shapes.

    Attributes:
        compared: names of the operations that were.
        incomparable: name to reason: random ones, and kernels that the CPU does not have.
        wrong: one line for each operation whose outputs differ.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._type = device.type
        self._seen: set[tuple[Any, ...]] = set()
        self.compared: set[str] = set()
        self.incomparable: dict[str, str] = {}
        self.wrong: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run it, and if it is new run it twice."""
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        key = (str(func), *((t.dtype, tuple(t.shape), t.stride()) for t in inputs))
        made_here = torch.device(kwargs.get("device") or "meta").type == self._type
        here = made_here or any(t.device.type == self._type for t in inputs)
        name = _name(func)
        if not here or key in self._seen or name.partition(".")[0] in WITHOUT_VALUES:
            return func(*args, **kwargs)
        self._seen.add(key)
        is_attention = _is_attention(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and not is_attention:
            self.incomparable[name] = "random"
            return func(*args, **kwargs)
        # in-place operations write into these copies, which are compared as outputs are
        there = _on_cpu((args, kwargs))
        out = func(*args, **kwargs)
        try:
            if is_attention:  # each device has a kernel of its own, and what they return differs
                out_0, expected = out[0], _plain_attention(func, *there)
                self.compared.add(name)
                self._compare(name, [out_0], [expected])
                return out
            expected = func(*there[0], **there[1])
        except (NotImplementedError, RuntimeError) as error:
            self.incomparable[name] = str(error).splitlines()[0]
            return out
        self.compared.add(name)
        if func._schema.is_mutable:
            out_and_written, expected_and_written = (out, args, kwargs), (expected, *there)
            self._compare(name, _leaves(out_and_written), _leaves(expected_and_written))
        else:
            self._compare(name, _leaves(out), _leaves(expected))
        return out

    def _compare(self, name: str, found: list[Tensor], expected: list[Tensor]) -> None:
        for one, other in zip(found, expected, strict=True):
            difference = relative_difference(one.detach().cpu(), other)
            allowed = TOLERANCES.get(other.dtype, 0.0)
            if not difference <= allowed:
                shape = list(other.shape)
                self.wrong.append(f"{name} on {shape} is off by {difference:.1e} of its largest")
                return

    def finding(self, title: str) -> Finding:
        """What was seen, as a check's result."""
        if self.wrong:
            rest = f", and {len(self.wrong) - 1} more" if self.wrong[1:] else ""
            return judged(title, False, f"{self.wrong[0]}{rest}")
        beside = f"; not on the CPU: {', '.join(sorted(self.incomparable))}"
        found = f"{len(self.compared)} operations agree with the CPU's"
        return judged(title, bool(self.compared), found + (beside if self.incomparable else ""))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest number; infinite where only one of the two is finite."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    if expected.numel() == 0:
        return 0.0
    finite = expected.isfinite()
    same_elsewhere = torch.equal(
        found.double()[~finite].nan_to_num(nan=0.5), expected.double()[~finite].nan_to_num(nan=0.5)
    )
    if not same_elsewhere or not bool(found[finite].isfinite().all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    difference = (found.double() - expected.double())[finite].abs().max()
    return float(difference / expected.double()[finite].abs().max().clamp_min(1e-6))


def _name(func: Any) -> str:
    """As the audit names it: ``add.Tensor``, and ``mm`` where there is no overload."""
    name, overload = func._schema.name.removeprefix("aten::"), func._schema.overload_name
    return f"{name}.{overload}" if overload else str(name)


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names that the operation's schema gives them."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _is_attention(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """A forward kernel of attention that drops nothing, and so gives what the formula says."""
    name = func._schema.name
    if "_scaled_dot_product" not in name or "backward" in name:
        return False
    return not _named(func, args, kwargs).get("dropout_p")


def _plain_attention(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What the formula says, in the inputs' dtype."""
    given = _named(func, args, kwargs)
    return F.scaled_dot_product_attention(
        given["query"],
        given["key"],
        given["value"],
        attn_mask=given.get("attn_mask", given.get("attn_bias")),
        is_causal=bool(given.get("is_causal")),
        scale=given.get("scale"),
    )


def _on_cpu(values: Any) -> Any:
    """Copies on the CPU that overlap as the originals do; arguments that name a device name it."""
    storages: dict[int, torch.UntypedStorage] = {}

    def copy(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            there = torch.UntypedStorage(storage.nbytes())  # type: ignore[no-untyped-call]
            storages[storage._cdata] = there.copy_(storage)
        empty = torch.empty(0, dtype=tensor.dtype)
        place = storages[storage._cdata]
        return empty.set_(place, tensor.storage_offset(), tensor.size(), tensor.stride())

    def cpu(_: torch.device) -> torch.device:
        return torch.device("cpu")

    return tree_map_only(torch.device, cpu, tree_map_only(Tensor, copy, values))


def _leaves(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
