"""Where the critic's rewards come from, and the documents that its value head learns from."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wmtp.config import Settings
from wmtp.data.pairs import Pairs, find_pairs
from wmtp.data.prepare import prepare_cached
from wmtp.data.reward_model import rewards_by_model
from wmtp.data.rows import DocumentRewards, Rows
from wmtp.data.shards import Shards, is_shards
from wmtp.data.sources import Source, list_files
from wmtp.data.splits import Split
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError, DataError
from wmtp.opening.data import Report, as_source
from wmtp.opening.model_names import model_directory
from wmtp.runtime.device import Device
from wmtp.weighting import Critic


@dataclass(frozen=True)
class ValueData:
    """What the value head learns from before the model is trained.

    Attributes:
        learned: documents with rewards, one a row.
        held_out: others, which only measure it.
        pairs: of the learned documents, where the loss compares pairs.
    """

    learned: Rows
    held_out: Rows
    pairs: Pairs | None


def document_rewards(
    settings: Settings,
    critic: Critic,
    shards: Shards,
    tokenizer: TextTokenizer,
    device: Device,
    report: Report,
) -> DocumentRewards:
    """The reward of every document, NaN where it has none.

    Raises:
        DataError: a reward is out of range for the value loss.
    """
    if critic.reward == "model":
        name = settings.config.paths.models.rm
        assert name is not None  # check_start() has refused that
        values = rewards_by_model(shards, tokenizer, model_directory(name), device, report)
    elif shards.rewards is not None:
        values = shards.rewards
    else:
        values = np.full(shards.manifest.documents, np.nan, dtype=np.float32)
    known = values[np.isfinite(values)]
    if critic.value_loss != "mse" and len(known) and not (0 <= known.min() <= known.max() <= 1):
        raise DataError(
            f"rewards in '{shards.path}' go from {known.min():g} to {known.max():g}, but "
            f"weighting.value_loss {critic.value_loss} needs them from 0 to 1. Use mse."
        )
    return DocumentRewards(np.asarray(values, dtype=np.float32), critic.spread)


def open_value_data(
    settings: Settings,
    critic: Critic,
    tokenizer: TextTokenizer,
    cache: Path,
    device: Device,
    report: Report,
) -> ValueData:
    """The documents of stage 1: those of the sources' train split, and of their validation split.

    Raises:
        ConfigError: the sources are shards, which have no splits.
        DataError: there is no reward, or no pair, to learn from.
    """
    specs = settings.recipe.data.rewards.sources or settings.recipe.data.train.sources
    sources = tuple(_with_wrong_programs(as_source(settings, spec)) for spec in specs)

    def open_split(split: Split) -> Rows:
        part = tuple(replace(source, split=split) for source in sources)
        return _open_part(settings, critic, part, tokenizer, cache, device, report)

    learned, held_out = open_split("train"), open_split("validation")
    pairs = None
    if critic.value_loss == "pairwise":
        whole_rewards_N = np.where(reaches_end(learned), rewards_of(learned), np.nan)
        pairs = find_pairs(learned.shards, whole_rewards_N)
    report(
        f"value head: {len(learned):,} documents to learn from, {len(held_out):,} held out"
        + (f", {len(pairs):,} pairs of {pairs.problems:,} problems" if pairs else "")
    )
    return ValueData(learned, held_out, pairs)


def _with_wrong_programs(source: Source) -> Source:
    """A contest's wrong programs are what a language model is spared and a value head needs."""
    if is_shards(Path(source.path)):
        raise ConfigError(
            f"data.rewards.sources has '{source.path}', a folder of shards, which cannot be "
            "split into learned and held-out documents. Name the text it was made of."
        )
    return replace(source, solutions="all") if list_files(source).format == "contest" else source


def _open_part(
    settings: Settings,
    critic: Critic,
    sources: tuple[Source, ...],
    tokenizer: TextTokenizer,
    cache: Path,
    device: Device,
    report: Report,
) -> Rows:
    shards = prepare_cached(sources, tokenizer, cache, report)
    rewards = document_rewards(settings, critic, shards, tokenizer, device, report)
    if not np.isfinite(rewards.values).any():
        raise DataError(
            f"weighting.reward is '{critic.reward}', but no document of "
            f"{', '.join(source.path for source in sources)} has a reward. Give JSONL lines "
            "reward or is_correct, a contest file, or weighting.reward: model."
        )
    rows = Rows(
        shards,
        critic.stage1.max_length or settings.recipe.data.train.max_length,
        packed=False,
        mask_prompt=settings.recipe.data.train.mask_prompt,
        rewards=rewards,
    )
    check_ends(rows, critic, report)
    return rows


def check_ends(rows: Rows, critic: Critic, report: Report) -> None:
    """Tell how many documents are cut before their end, where a terminal reward lies.

    Raises:
        DataError: not one with a reward is read to its end, so that nothing would be learned.
    """
    whole_N = reaches_end(rows)
    rewarded_N = np.isfinite(rewards_of(rows))
    count, cut = int(rewarded_N.sum()), int((rewarded_N & ~whole_N).sum())
    if cut == count and critic.spread == "terminal":
        raise DataError(
            f"none of the {count:,} documents with a reward in '{rows.shards.path}' can be read to "
            f"its last token within {rows.max_length} tokens, so the value head would learn "
            "nothing. Raise weighting.stage1.max_length (default: data.train.max_length)."
        )
    if cut:
        report(
            f"value head: {cut:,} of {count:,} documents are longer than {rows.max_length} tokens "
            "(weighting.stage1.max_length); how they end is not seen"
        )


def reaches_end(rows: Rows) -> NDArray[np.bool_]:
    """Which documents have a wanted token, and the last one in their row; one document a row."""
    wanted = rows.wanted_tokens
    return (wanted.last >= 0) & (wanted.last - wanted.first < rows.max_length)


def rewards_of(rows: Rows) -> NDArray[np.float32]:
    """The reward of each document, NaN where it has none."""
    assert rows.rewards is not None
    return rows.rewards.values


def describe_rewards(rewards: DocumentRewards) -> str:
    """One line on how many of the documents that the model learns from have a reward."""
    known, count = int(np.isfinite(rewards.values).sum()), len(rewards.values)
    text = f"rewards: {known:,} of {count:,} training documents have one"
    if known == count:
        return text
    return f"{text}; the others are weighed by the value head's estimates alone"
