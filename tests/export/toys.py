"""Model directories with a tokenizer and a chat template, as a run leaves them."""

from functools import cache
from pathlib import Path

import torch

from tests.model.toys import toy_model
from wmtp.data.tokenizer import TextTokenizer
from wmtp.data.tokenizer_training import train_tokenizer
from wmtp.model.heads.sequential import SequentialHeads
from wmtp.model.hf_layout import save_model
from wmtp.model.llama import LlamaTrunk
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.stored_config import SpecialTokens

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@cache
def tokenizer() -> TextTokenizer:
    text = "def add(a, b):\n    return a + b\n안녕하세요 세계\n"
    return train_tokenizer([text] * 9, 300)


def model_directory(folder: Path, *, agreeing: bool = False, **changes: object) -> Path:
    """Save a random model with four heads; its gains are random too.

    Args:
        folder: made here.
        agreeing: let the heads draft what the trunk says, though not always.
        changes: of ``toy_model``.
    """
    options = {"horizon": 4, "vocab_size": 300, "max_seq_length": 96} | changes
    model = toy_model(**options)  # type: ignore[arg-type]
    if agreeing:
        let_heads_agree(model)
    save_model(model, folder, special_tokens=SpecialTokens(None, (tokenizer().eos_id,)))
    tokenizer().save(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@torch.no_grad()
def let_heads_agree(model: MultiTokenModel) -> None:
    """What follows depends on the last token, in the trunk and in the heads, and on little else."""
    assert isinstance(model.heads, SequentialHeads)
    assert isinstance(model.trunk, LlamaTrunk)
    for block in [*model.trunk.blocks, *model.heads.blocks]:
        for name, parameter in block.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.1)
    width = model.trunk_shape.hidden_size
    for depth in model.heads.chain:
        depth.eh_proj.weight.mul_(0.02)
        depth.eh_proj.weight[:, :width] += torch.eye(width)
        depth.enorm.weight.fill_(1)
        depth.shared_head.norm.weight.copy_(model.trunk.final_gain_D())
