"""Rewards from a model that judges whole texts: a sequence classifier of ``transformers``.

One label is read as a logit, two as wrong and right; either way a reward is a probability. Code
that a model directory brings along is never run.
"""

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.reference import fingerprint_model
from wmtp.data.shards import Shards, add_document_column
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import CheckpointError, DataError
from wmtp.runtime.device import Device


@final
class RewardModel:
    """A frozen classifier with its own tokenizer."""

    def __init__(
        self, network: Any, tokenizer: TextTokenizer, device: Device, longest: int
    ) -> None:
        self.network = network.requires_grad_(False).eval().to(device.torch_device)
        self.tokenizer = tokenizer
        self.device = device
        self.longest = longest

    @torch.no_grad()
    def reward(self, text: str) -> float:
        """Probability that the text is right; NaN where it is longer than the model can read.

        Raises:
            CheckpointError: the model gives something else than a number.
        """
        ids = [*self.tokenizer.bos_ids, *self.tokenizer.encode(text)]
        if not ids or len(ids) > self.longest:
            return float("nan")
        tokens_1S = torch.tensor([ids], device=self.device.torch_device)
        with self.device.autocast():
            logits: Tensor = self.network(input_ids=tokens_1S).logits[0].float()
        right = logits[0].sigmoid() if len(logits) == 1 else logits.softmax(0)[1]
        reward = float(right)
        if not math.isfinite(reward):
            raise CheckpointError(
                f"the reward model's {type(self.network).__name__} does not give a number for a "
                f"text of {len(ids)} tokens. Set devices.mixed_precision: fp32, or use another."
            )
        return reward


def load_reward_model(directory: Path, device: Device) -> RewardModel:
    """Read a classifier; one whose last layer is not stored is refused, never made up.

    Raises:
        CheckpointError: it cannot be loaded, or has more than two labels.
        DataError: its tokenizer cannot be read.
    """
    # transformers takes seconds to import, and only who asks for a reward model needs it here
    from transformers import AutoModelForSequenceClassification

    from wmtp.model.hf_trunk import longest_row_of
    from wmtp.model.hf_trunk_directory import read_transformers_config
    from wmtp.model.transformers_calls import read_network

    problem = f"paths.models.rm is '{directory}', which transformers cannot load as a classifier"
    config = read_transformers_config(directory)
    network, _ = read_network(AutoModelForSequenceClassification, directory, problem, config)
    if network.config.num_labels > 2:
        raise CheckpointError(
            f"paths.models.rm is '{directory}', which tells {network.config.num_labels} labels "
            "apart; a reward model has one (a score) or two (wrong, right)."
        )
    return RewardModel(network, TextTokenizer.load(directory), device, longest_row_of(network))


def rewards_by_model(
    shards: Shards,
    tokenizer: TextTokenizer,
    directory: Path,
    device: Device,
    report: Callable[[str], None],
) -> NDArray[np.float32]:
    """The reward of every document, made now or found beside the shards.

    Args:
        shards: the documents.
        tokenizer: of the shards, to read their text back.
        directory: of the reward model.
        device: where to run it.
        report: takes a line about what is done.

    Returns:
        float32, one per document; NaN for one that is too long for the model.

    Raises:
        CheckpointError: the model cannot be used.
        DataError: not one document could be judged.
        StorageError: the rewards could not be kept.
    """
    key = hashlib.sha256(f"{fingerprint_model(directory)} {device.precision}".encode()).hexdigest()
    name = f"reward.{key[:16]}"
    kept = shards.document_column(name)
    if kept is None:
        report(f"reward model {directory} judges {shards.manifest.documents:,} documents")
        model = load_reward_model(directory, device)
        kept = add_document_column(shards, name, judge_all(model, shards, tokenizer, report))
    judged = int(np.isfinite(kept).sum())
    if not judged:
        raise DataError(
            f"the reward model '{directory}' could judge none of the documents in "
            f"'{shards.path}': each is longer than it can read."
        )
    if judged < len(kept):
        report(f"{len(kept) - judged:,} documents are too long for the reward model: no reward")
    return kept


def judge_all(
    model: RewardModel,
    shards: Shards,
    tokenizer: TextTokenizer,
    report: Callable[[str], None],
    seconds_between_lines: float = 10.0,
) -> NDArray[np.float32]:
    """The reward of every document, with a line now and then: a large model takes hours."""
    count = shards.manifest.documents
    values_N, told_at = np.empty(count, dtype=np.float32), time.monotonic()
    for i in range(count):
        values_N[i] = model.reward(text_of(shards, tokenizer, i))
        if time.monotonic() - told_at >= seconds_between_lines:
            told_at = time.monotonic()
            report(f"{i + 1:,} of {count:,} documents judged")
    return values_N


def text_of(shards: Shards, tokenizer: TextTokenizer, document: int) -> str:
    """A document's text as the tokens have it, without what the tokenizer puts around it."""
    start = int(shards.ends[document - 1]) if document else 0
    ids = [int(token) for token in shards.tokens[start : int(shards.ends[document])]]
    ids = ids[len(tokenizer.bos_ids) :]
    return tokenizer.decode(ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids)
