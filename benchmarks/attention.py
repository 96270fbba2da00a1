"""Compare attention in tiles with torch's own, forward and backward, on the CPU.

    python benchmarks/attention.py                    # about a minute on one core
    python benchmarks/attention.py --markdown FILE    # for a result worth keeping

All run in one process on one thread and take turns; the least CPU time of ``--rounds`` counts.
"Math" is the path that torch takes where a device has no fused kernel with gradients, as on MPS.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from wmtp.model.attention import tiled_attention

HEADS, WIDTH = 8, 64


def largest_error(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def compare(positions: int, groups: int, dtype: torch.dtype, rounds: int) -> list[str]:
    draws = torch.Generator().manual_seed(0)

    def tensor(heads: int) -> Tensor:
        drawn = torch.randn(1, heads, positions, WIDTH, generator=draws).to(dtype)
        return drawn.requires_grad_()

    query, key, value = tensor(HEADS), tensor(groups), tensor(groups)
    gradient = tensor(HEADS).detach()

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=groups != HEADS
        )

    def math() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return fused()

    def tiled() -> Tensor:
        return tiled_attention(query, key, value, None, causal=True)

    ways: dict[str, Callable[[], Tensor]] = {"math": math, "fused": fused, "tiled": tiled}
    least = dict.fromkeys(ways, float("inf"))
    found: dict[str, tuple[Tensor, ...]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.thread_time()
            found[name] = torch.autograd.grad(way(), (query, key, value), gradient)
            least[name] = min(least[name], time.thread_time() - started)
    error = max(
        largest_error(one, other) for one, other in zip(found["tiled"], found["math"], strict=True)
    )
    return [
        str(positions),
        f"{HEADS}/{groups}",
        str(dtype).removeprefix("torch."),
        *(f"{1000 * least[name]:.0f}" for name in ways),
        f"{least['math'] / least['tiled']:.2f}",
        f"{error:.1e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| positions | heads/groups | dtype | math ms | fused ms | tiled ms | math / tiled "
        "| largest difference of gradients |",
        f"|---:|---|---|{'---:|' * 5}",
    ]
    for positions in given.lengths:
        for groups in (HEADS, 2):
            for dtype in (torch.float32, torch.bfloat16):
                lines.append(f"| {' | '.join(compare(positions, groups, dtype, given.rounds))} |")
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
