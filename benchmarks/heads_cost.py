r"""What three further heads cost: time against FLOP, and memory against their blocks'.

    python benchmarks/heads_cost.py                             the small Korean model, some minutes
    python benchmarks/heads_cost.py --recipe recipes/korean_mac.yaml --rows 1
    python benchmarks/heads_cost.py --memory-only --device cuda --config configs/cuda.yaml \\
        --recipe recipes/korean_medium.yaml

Time: forward, loss and backward of one micro-batch of random tokens with the recipe's horizon and
with 1, in turn in one process, on one thread; the least processor time of the rounds. It is to be
at most the ratio of their FLOP (``training_flops_per_token``) and 10 %.

Memory: simulated peaks of training steps (``wmtp plan``) with the recipe's horizon and with 1. What
the further heads hold of their own is taken from the trunk: a trunk of as many more layers as there
are further heads, and weights, gradients, optimizer state and inputs of the joining maps. It is to
be at most that and 256 MiB.
"""

import argparse
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from wmtp.runtime.environment import set_environment_before_torch

if TYPE_CHECKING:
    from wmtp.config import Settings

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default=str(ROOT / "recipes/korean_small.yaml"))
    parser.add_argument("--config", default=str(ROOT / "configs/local.yaml"))
    parser.add_argument("--rows", type=int, default=2, help="of the micro-batch that is timed")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cpu", help="whose memory is simulated")
    parser.add_argument("--memory-only", action="store_true")
    given = parser.parse_args()
    set_environment_before_torch()
    print(f"{date.today()}, {Path(given.recipe).stem}, {given.precision}")
    if not given.memory_only:
        time_heads(given)
    remember_heads(given)


def settings_of(
    given: argparse.Namespace, horizon: int | None = None, layers: int = 0
) -> "Settings":
    """The recipe with another horizon, and with more layers."""
    from wmtp.config_check import load_settings

    precision = f"config.devices.mixed_precision={given.precision}"
    settings = load_settings(given.config, given.recipe, overrides=(precision,))
    if horizon is None:
        return settings
    overrides = [
        precision,
        f"recipe.model.heads.horizon={horizon}",
        f"recipe.model.num_layers={settings.recipe.model.num_layers + layers}",
    ]
    return load_settings(given.config, given.recipe, overrides=tuple(overrides))


def time_heads(given: argparse.Namespace) -> None:
    import torch

    from wmtp.loss import fused_mtp_loss
    from wmtp.model.multi_token import build_model
    from wmtp.opening.model import heads_shape, trunk_shape
    from wmtp.runtime.device import choose_device

    torch.set_num_threads(1)
    recipe = settings_of(given).recipe
    length, vocabulary = recipe.data.train.max_length, recipe.model.vocab_size
    horizons = (1, recipe.model.heads.horizon)
    models = []
    for horizon in horizons:
        one = settings_of(given, horizon).recipe
        models.append(build_model(trunk_shape(one, vocabulary), heads_shape(one), seed=0))
    tokens = torch.randint(0, vocabulary, (given.rows, length + max(horizons)))
    device, least = choose_device("cpu", given.precision), [float("inf")] * 2
    workspace = device.loss_workspace()
    for round_ in range(given.rounds + 1):  # the first one pays for buffers
        for place, (horizon, model) in enumerate(zip(horizons, models, strict=True)):
            targets = tokens.unfold(1, length, 1)[:, 1 : horizon + 1].transpose(1, 2).contiguous()
            started = time.process_time()
            with device.autocast():
                hidden = model(tokens[:, :length], targets)
            output = fused_mtp_loss(
                hidden,
                model.unembeddings,
                targets,
                torch.ones_like(targets, dtype=torch.bool),
                lambda ce, part: torch.ones(given.rows, length, horizon),  # noqa: B023
                "known",
                valid_count=targets.numel(),
                unembedding_gradients=[torch.zeros_like(model.unembedding_VD)],
                workspace=workspace,
            )
            output.loss.backward()
            for parameter in model.parameters():
                parameter.grad = None
            if round_:
                least[place] = min(least[place], time.process_time() - started)
    flop = [model.training_flops_per_token(length) for model in models]
    ratio, allowed = least[1] / least[0], 1.1 * flop[1] / flop[0]
    print(f"time of {given.rows} x {length} tokens: {least[0]:.2f} s with H = 1, {least[1]:.2f} s "
          f"with H = {horizons[1]}: {ratio:.2f} times, FLOP {flop[1] / flop[0]:.2f} times, "
          f"{'within' if ratio <= allowed else 'beyond'} 10 % of that")  # fmt: skip


def remember_heads(given: argparse.Namespace) -> None:
    from wmtp.memory_plan import predict

    whole = settings_of(given)
    recipe = whole.recipe
    further, vocabulary = recipe.model.heads.horizon - 1, recipe.model.vocab_size
    chosen = (settings_of(given, 1), whole, settings_of(given, 1, layers=further))
    found = [predict(settings, given.device, vocab_size=vocabulary) for settings in chosen]
    plain, with_heads, deeper = found
    joining = 2 * recipe.model.hidden_size**2
    numbers, fewer = (one.peak_bytes - one.parts["activations"] for one in (deeper, plain))
    per_number = (numbers - fewer) / (deeper.parameters - plain.parameters)
    itemsize = 4 if whole.config.devices.mixed_precision == "fp32" else 2
    rows = recipe.micro_batch_rows * recipe.data.train.max_length
    # two normed inputs, their joined form, and what enters the block
    inputs = 5 * rows * recipe.model.hidden_size * itemsize
    own = deeper.peak_bytes - plain.peak_bytes + further * (per_number * joining + inputs)
    more = with_heads.peak_bytes - plain.peak_bytes
    beyond = (more - own) / MEBIBYTE
    print(f"memory on {given.device}: {plain.peak_bytes / MEBIBYTE:,.0f} MiB with H = 1, "
          f"{more / MEBIBYTE:,.0f} more with H = {further + 1}; their blocks hold "
          f"{own / MEBIBYTE:,.0f} of it, {beyond:,.0f} beyond (256 are allowed)")  # fmt: skip


if __name__ == "__main__":
    main()
