"""Small models with random weights; none of their numbers is special."""

import torch

from wmtp.model.heads import HeadsShape
from wmtp.model.hf_trunk import build_hf_model
from wmtp.model.llama_shape import LlamaShape
from wmtp.model.multi_token import MultiTokenModel, build_model

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_seq_length": 64,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "tie_embeddings": False,
}


def shape(**changes: object) -> LlamaShape:
    return LlamaShape(**(SHAPE | changes))  # type: ignore[arg-type]


TRUNKS = ("llama", "qwen3", "gpt2", "gpt_neox", "opt")
KINDS = ("sequential", "parallel", "linear")


def toy_model(
    horizon: int = 3,
    hidden: str = "post_norm",
    *,
    kind: str = "sequential",
    trunk: str = "llama",
    context: str = "chained",
    **changes: object,
) -> MultiTokenModel:
    """Every parameter random, gains included, so that nothing is hidden by a one or a zero."""
    heads = HeadsShape(horizon, hidden, kind=kind, context=context)  # type: ignore[arg-type]
    if trunk in ("llama", "qwen3"):
        model = build_model(shape(**{"qk_norm": trunk == "qwen3"} | changes), heads, seed=0)
    else:
        model = build_hf_model(trunk, shape(**changes), heads, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.7, 1.3, generator=generator)
            else:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def stream(
    batch: int, length: int, horizon: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets cut from one random stream, as a loader would."""
    generator = torch.Generator().manual_seed(seed)
    x_BT = torch.randint(0, 64, (batch, length + horizon), generator=generator)
    return x_BT[:, :length], x_BT[:, 1:].unfold(1, horizon, 1)
