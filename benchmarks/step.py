"""What three more heads cost in a whole training step: time against FLOPs, and memory.

    python benchmarks/step.py [--hidden 512 --layers 8 --vocab 32000 --rows 4 --length 512]

Each case runs in a process of its own, on one thread: forward, loss, backward and AdamW on random
tokens. The deeper trunk with one head has as many blocks as the trunk with four heads, so that
what is left between the two in memory is the price of the four outputs and the joining maps.
"""

import argparse
import json
import subprocess
import sys
import time

MEBIBYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default in (("hidden", 512), ("layers", 8), ("vocab", 32000), ("rows", 4),
                          ("length", 512), ("steps", 4)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options, *map(int, options.case.split(",")))))
        return
    one, deep, four = (
        in_child(f"{horizon},{extra}") for horizon, extra in ((1, 0), (1, 3), (4, 0))
    )
    flops = four["flops"] / one["flops"]
    taken = four["seconds"] / one["seconds"]
    maps = 3 * 2 * options.hidden**2 * 16  # weights, gradients and two moments of eh_proj
    beyond = four["peak_bytes"] - deep["peak_bytes"] - maps
    print("| | H=1 | H=1, 3 more layers | H=4 |\n|---|---|---|---|")
    print(f"| CPU seconds a step | {one['seconds']:.2f} | {deep['seconds']:.2f} "
          f"| {four['seconds']:.2f} |")  # fmt: skip
    print("| peak MiB | " + " | ".join(
        f"{case['peak_bytes'] / MEBIBYTE:,.0f}" for case in (one, deep, four)) + " |")  # fmt: skip
    print("\n| goal | found | |\n|---|---|---|")
    print(f"| time <= FLOP ratio {flops:.2f} + 10 % | {taken:.2f} ({taken / flops - 1:+.0%}) "
          f"| {'met' if taken <= 1.1 * flops else 'MISSED'} |")  # fmt: skip
    print(f"| memory beyond the blocks <= 256 MiB | {beyond / MEBIBYTE:,.0f} MiB "
          f"| {'met' if beyond <= 256 * MEBIBYTE else 'MISSED'} |")  # fmt: skip


def in_child(case: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--case", case]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace, horizon: int, extra_layers: int) -> dict[str, float]:
    """CPU seconds of the quickest step after the first, and the process's peak memory."""
    import torch

    from wmtp.loss import Workspace, fused_mtp_loss
    from wmtp.model.heads import HeadsShape
    from wmtp.model.llama_shape import LlamaShape
    from wmtp.model.multi_token import build_model
    from wmtp.optim import build_optimizers
    from wmtp.runtime.device import choose_device

    torch.set_num_threads(1)
    device = choose_device("cpu", "fp32")
    shape = LlamaShape(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3 // 64 * 64,
        num_layers=options.layers + extra_layers,
        num_heads=options.hidden // 64,
        num_kv_heads=options.hidden // 64,
        head_dim=64,
        max_seq_length=options.length,
        rope_theta=10000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
    )
    model = build_model(shape, HeadsShape(horizon), seed=0)
    (optimizer,) = build_optimizers(
        model.named_parameters(),
        name="adamw",
        lr=1e-4,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.0,
        fused=True,
    )
    workspace = Workspace(device.loss_workspace_bytes, device.loss_chunk_rows)
    stream = torch.randint(0, options.vocab, (options.rows, options.length + horizon))
    targets = stream[:, 1:].unfold(1, horizon, 1)
    valid = torch.ones_like(targets, dtype=torch.bool)
    matrix = model.unembedding_VD
    seconds = []
    for _ in range(options.steps):
        started = time.process_time()
        hidden = model(stream[:, : options.length], targets)
        matrix.grad = torch.zeros_like(matrix)
        fused_mtp_loss(
            hidden,
            [matrix],
            targets,
            valid,
            lambda _ce, _part: torch.ones_like(valid, dtype=torch.float32),
            "known",
            valid_count=float(valid.sum()),
            unembedding_gradients=[matrix.grad],
            workspace=workspace,
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - started)
    return {
        "seconds": min(seconds[1:]),
        "peak_bytes": device.peak_memory_bytes(),
        "flops": model.training_flops_per_token(options.length),
    }


if __name__ == "__main__":
    main()
