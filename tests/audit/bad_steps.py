"""Steps that do on ``mps`` what must not be done there, one for each rule, and one that is fine.

``python -m tests.audit.bad_steps`` prints the trace of each as a line of JSON, in a process that
takes itself for one on a Mac.
"""

import json
from collections.abc import Callable

import torch
from torch import nn

from wmtp.audit.pretend import pretend
from wmtp.audit.simulate import observe
from wmtp.errors import DeviceError

MPS = "mps"


def fine() -> None:
    layer = nn.Linear(8, 8, device=MPS)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(4, 8, device=MPS)).square().sum().backward()
    optimizer.step()


def float64() -> None:
    torch.ones(4, device=MPS).double().sum()


def no_kernel() -> None:
    torch.heaviside(torch.ones(4, device=MPS), torch.ones(4, device=MPS))


def composite_nobody_reviewed() -> None:
    torch.frexp(torch.ones(4, device=MPS))


def on_the_cpu() -> None:
    torch.embedding_renorm_(
        torch.ones(4, 4, device=MPS), torch.ones(2, dtype=torch.long, device=MPS), 1.0, 2.0
    )


def six_dimensions() -> None:
    torch.ones(1, 1, 1, 1, 1, 2, device=MPS) + 1


def more_than_32_bits() -> None:
    torch.empty(2**31, device=MPS).add_(1)


def large_product() -> None:
    torch.empty(2**17, 2, device=MPS) @ torch.empty(2, 2**17, device=MPS)


def expanded_factor() -> None:
    torch.ones(4, 8, device=MPS) @ torch.ones(8, 1, device=MPS).expand(8, 8)


def reads_a_number() -> None:
    torch.ones(4, device=MPS).sum().item()


def asks_which() -> None:
    torch.ones(4, device=MPS).nonzero()


def flags_as_indices() -> None:
    numbers = torch.ones(4, device=MPS)
    numbers[numbers > 0]


def copies_back() -> None:
    torch.ones(4, device=MPS).cpu()


def sends_a_list() -> None:
    torch.tensor([1.0, 2.0], device=MPS)


def four_dimensional_logits() -> None:
    hidden_BSD = torch.ones(2, 512, 64, device=MPS)
    torch.stack([hidden_BSD @ torch.ones(64, 32000, device=MPS) for _ in range(3)], dim=2)


def attention_matrices() -> None:
    query_BNTC = torch.ones(1, 4, 1024, 16, device=MPS, requires_grad=True)
    nn.functional.scaled_dot_product_attention(
        query_BNTC, query_BNTC, query_BNTC, is_causal=True
    ).sum().backward()


def adamw_in_a_loop() -> None:
    layer = nn.Linear(8, 8, device=MPS)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=False)
    layer(torch.ones(4, 8, device=MPS)).sum().backward()
    optimizer.step()


def rotations_again() -> None:
    torch.arange(8, dtype=torch.float32, device=MPS).cos()


def rotations_in_bf16() -> None:
    torch.arange(8, dtype=torch.bfloat16, device=MPS).cos()


class Growing:
    """A shape that no step had before."""

    def __init__(self) -> None:
        self.size = 0

    def __call__(self) -> None:
        self.size += 1
        torch.ones(self.size, device=MPS)


STEPS: tuple[Callable[[], None], ...] = (
    fine, float64, no_kernel, composite_nobody_reviewed, on_the_cpu, six_dimensions,
    more_than_32_bits, large_product, expanded_factor, reads_a_number, asks_which,
    flags_as_indices, copies_back, sends_a_list, four_dimensional_logits, attention_matrices,
    adamw_in_a_loop, rotations_again, rotations_in_bf16, Growing(),
)  # fmt: skip


def name_of(step: Callable[[], None]) -> str:
    return "growing" if isinstance(step, Growing) else step.__name__  # type: ignore[attr-defined]


def main() -> None:
    try:
        pretend()
    except DeviceError as error:
        print(json.dumps({"skipped": str(error)}))
        return
    for step in STEPS:
        trace = observe(step, device_type="mps")
        print(json.dumps({"step": name_of(step), "trace": trace.as_dict()}))


if __name__ == "__main__":
    main()
