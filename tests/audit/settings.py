"""Settings of models of a few thousand parameters, for simulated steps."""

from typing import Any

from wmtp.audit.cases import build_weighting
from wmtp.config import Config, Recipe, Settings


def toy_settings(
    *,
    trunk: dict[str, Any] | None = None,
    heads: str = "sequential",
    weighting: dict[str, Any] | None = None,
    precision: str = "fp32",
    checkpointing: bool = False,
    optimizer: str = "adamw",
    **train_data: Any,
) -> Settings:
    """One layer of width 32, three heads, two micro-batches of two rows of 16."""
    recipe = Recipe.model_validate(
        {
            "model": {
                "vocab_size": 128,
                "hidden_size": 32,
                "num_layers": 1,
                "num_heads": 4,
                "heads": {"kind": heads, "horizon": 3},
                **(trunk or {}),
            },
            "data": {
                "train": {"sources": ["none.txt"], "max_length": 16, "batch_size": 2, **train_data}
            },
            "weighting": build_weighting(weighting or {"algorithm": "baseline-mtp"}),
            "train": {
                "max_steps": 3,
                "gradient_accumulation": 2,
                "gradient_checkpointing": checkpointing,
            },
            "optim": {"name": optimizer},
        }
    )
    config = Config.model_validate({"devices": {"mixed_precision": precision}})
    return Settings(config=config, recipe=recipe)


GPT2 = {"kind": "hf", "architecture": "gpt2"}
