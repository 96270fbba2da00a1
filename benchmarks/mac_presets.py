"""Predicted peaks of the recipes for Macs, by simulated steps on MPS: the table of docs/apple.md.

    python benchmarks/mac_presets.py          about three minutes on one core
    python benchmarks/mac_presets.py medium   those whose recipe has this in its name

Nothing is allocated, and neither a Mac nor the models are needed; their sizes are written here. A
Mac is large enough if the peak takes at most three quarters of what Metal recommends, which is
taken as two thirds of its memory up to 32 GB and three quarters above.
"""

import argparse
import sys
from pathlib import Path

from wmtp.runtime.environment import set_environment_before_torch

ROOT = Path(__file__).parents[1]
GIBIBYTE = 1024**3
PARTS = ("weights", "gradients", "optimizer", "activations", "loss")
MACS = (16, 24, 32, 36, 48, 64, 96, 128)
DISTILGPT2 = {"architecture": "gpt2", "hidden_size": 768, "num_layers": 6, "num_heads": 12,
              "vocab_size": 50257}  # fmt: skip
SHEARED_LLAMA = {"hidden_size": 2560, "num_layers": 32, "num_heads": 20, "intermediate_size": 6912,
                 "vocab_size": 32000, "tie_embeddings": "false", "qk_norm": "false"}  # fmt: skip
CASES = (
    ("mac_82m", DISTILGPT2, 4),
    ("mac_82m", DISTILGPT2, 8),
    ("mac_2_7b", SHEARED_LLAMA, 2),
    ("mac_medium", {}, 4),
    ("mac_medium", {}, 2),
    ("mac_large", {}, 1),
)
"""Recipe, sizes of the model that it starts from, rows of a micro-batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of recipes' names")
    names = parser.parse_args().names
    set_environment_before_torch()
    from wmtp.audit.apart import Failed, Request, simulate_apart
    from wmtp.config_check import load_settings

    chosen = [case for case in CASES if not names or any(name in case[0] for name in names)]
    requests = []
    for recipe, sizes, rows in chosen:
        # more micro-batches than two hold no more
        changes = {f"model.{key}": value for key, value in sizes.items()}
        changes |= {"data.train.batch_size": rows, "train.gradient_accumulation": 2,
                    "paths.models.base": ""}  # fmt: skip
        settings = load_settings(
            str(ROOT / "configs/local.yaml"),
            str(ROOT / f"recipes/{recipe}.yaml"),
            profiles=(str(ROOT / "configs/profiles/mps_optimized.yaml"),),
            overrides=tuple(f"{key}={value}" for key, value in changes.items()),
        )
        vocabulary = settings.recipe.model.vocab_size
        requests.append(Request(settings, vocab_size=vocabulary, steps=2))
    print(f"| recipe | rows | parameters | peak GiB | {', '.join(PARTS)} | Mac |")
    print("|---|---|---|---|---|---|")
    for (recipe, _, rows), found in zip(chosen, simulate_apart(requests), strict=True):
        if isinstance(found, Failed):
            print(f"{recipe}: {found.message}", file=sys.stderr)
            sys.exit(1)
        shown = ", ".join(f"{found.peak_by_part[part] / GIBIBYTE:.1f}" for part in PARTS)
        mac = smallest_mac(found.peak_bytes)
        peak = f"{found.peak_bytes / GIBIBYTE:.1f}"
        row = (recipe, str(rows), f"{found.parameters:,}", peak, shown, mac)
        print(f"| {' | '.join(row)} |", flush=True)


def smallest_mac(peak_bytes: int) -> str:
    """The smallest of those sold whose memory is enough."""
    for gigabytes in MACS:
        recommended = gigabytes * (3 / 4 if gigabytes > 32 else 2 / 3)
        if peak_bytes <= recommended * GIBIBYTE * 3 / 4:
            return f"{gigabytes} GB"
    return "none"


if __name__ == "__main__":
    main()
