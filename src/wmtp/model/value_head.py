"""The value head: an estimate, at every position, of how well the text will end."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from wmtp import __version__
from wmtp.errors import CheckpointError
from wmtp.model.stored_tensors import open_tensors, shown_shapes
from wmtp.untrusted import read_json

WEIGHTS_NAME = "value_head.safetensors"
FACTS_NAME = "value_head.json"
NORM_EPS = 1e-5

Output = Literal["linear", "sigmoid"]
"""The last step: none, or a sigmoid, for values that are probabilities."""


@final
class ValueHead(nn.Module):
    """Two linear maps on the normed hidden state of the trunk, in float32 whatever the trunk is.

    It passes its gradient on to what it is given: hand it ``hidden_BSD.detach()`` to keep the
    trunk out of it.
    """

    def __init__(self, hidden_size: int, output: Output) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.output = output
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, 1)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """``V_s``, float32 ``[B, S]``."""
        return self.values(self.scores(hidden_BSD))

    def scores(self, hidden_BSD: Tensor) -> Tensor:
        """What the last step turns into values, float32 ``[B, S]``; a loss may want it as it is."""
        # precision must not depend on where this is called: advantages are small differences
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            normed_BSD = F.rms_norm(hidden_BSD.float(), (self.hidden_size,), eps=NORM_EPS)
            scores_BS1: Tensor = self.outer(F.silu(self.inner(normed_BSD)))
        return scores_BS1.squeeze(2)

    def values(self, scores_BS: Tensor) -> Tensor:
        """Values from scores."""
        return scores_BS.sigmoid() if self.output == "sigmoid" else scores_BS


def build_value_head(hidden_size: int, output: Output, seed: int) -> ValueHead:
    """Build a float32 head on the CPU whose every score is 0, so that it claims nothing yet."""
    head = ValueHead(hidden_size, output)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.inner.weight.normal_(0, 1 / math.sqrt(hidden_size), generator=generator)
        for parameter in (head.inner.bias, head.outer.weight, head.outer.bias):
            parameter.zero_()
    return head


def save_value_head(head: ValueHead, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``value_head.safetensors`` and ``value_head.json`` into ``folder``, which is made.

    Args:
        head: on any device.
        folder: usually inside one that is written under another name first, see ``write_folder``.
        facts: how it came about, such as ``value_loss``, ``trunk`` (fingerprint), ``reward``,
            ``held_out_auc``; finite JSON. The head's own shape and wmtp's version are added.

    Raises:
        ValueError: a fact is NaN, infinite or not JSON.
        OSError, SafetensorError: the disk refused.
    """
    text = json.dumps({**facts, **_shape_of(head), "wmtp": __version__}, allow_nan=False, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu() for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME)
    (folder / FACTS_NAME).write_text(text + "\n", encoding="utf-8")


def load_value_head(folder: Path, hidden_size: int, output: Output) -> ValueHead:
    """Read a value head onto the CPU; one that does not fit is refused, never replaced.

    Args:
        folder: what ``save_value_head`` filled.
        hidden_size: D of the trunk that it will read.
        output: what the recipe's value loss needs.

    Raises:
        CheckpointError: a file is missing or damaged, or the head is for something else.
    """
    facts = read_value_head_facts(folder)
    head = ValueHead(hidden_size, output)
    for key, wanted in _shape_of(head).items():
        if facts.get(key) != wanted:
            raise CheckpointError(
                f"the value head in '{folder}' has {key} {facts.get(key)!r}, but this run needs "
                f"{wanted!r}. Train one for this model and value_loss: leave value_head empty, "
                "under a new --run-name."
            )
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"'{folder}' is no value head: it has no {WEIGHTS_NAME}.")
    with open_tensors(path) as file:
        found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if found != {name: list(tensor.shape) for name, tensor in head.state_dict().items()}:
            raise CheckpointError(
                f"{path} holds {shown_shapes(found)}, which is no value head of width "
                f"{hidden_size}."
            )
        tensors = {name: file.get_tensor(name) for name in found}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} has numbers that are not finite.")
    head.load_state_dict(tensors)
    return head


def read_value_head_facts(folder: Path) -> dict[str, Any]:
    """What ``value_head.json`` says.

    Raises:
        CheckpointError: the folder or file is missing, or is not such a file.
    """
    path = folder / FACTS_NAME
    try:
        facts = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"'{folder}' is no value head: it has no {FACTS_NAME}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is not a description of a value head.")
    return facts


def _shape_of(head: ValueHead) -> dict[str, Any]:
    return {"hidden_size": head.hidden_size, "output": head.output}
