"""What a folder of shards holds, for a person to read."""

from pathlib import Path

import numpy as np

from wmtp.data.shards import Shards, open_shards
from wmtp.data.tokenizer import TextTokenizer
from wmtp.untrusted import printable


def describe_shards(path: Path, documents: int, characters: int) -> list[str]:
    """Verify shards and describe them: counts, sources, columns, and the first documents.

    Args:
        path: the folder.
        documents: how many to show.
        characters: how much of each.

    Raises:
        DataError: it is no folder of shards, or is damaged.
    """
    shards = open_shards(path)
    shards.verify()
    manifest = shards.manifest
    lines = [
        f"{path}: {manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}), "
        "as they were written",
        f"tokenizer: {manifest.tokenizer[:12]}, {manifest.vocab_size:,} ids",
    ]
    for source in manifest.sources:
        lines.append(
            f"source: {source.path} ({source.format}, {source.split}): "
            f"{source.documents:,} documents, {source.tokens:,} tokens"
        )
        lines += [
            f"  {origin.source or 'unnamed'} ({origin.license or 'no license named'}): "
            f"{origin.documents:,} documents, {origin.tokens:,} tokens"
            for origin in source.origins
        ]
        lines += [f"  left out, {reason}: {n}" for reason, n in source.bad_lines.items()]
        lines += [f"  passed over, {reason}: {n}" for reason, n in source.passed_over.items()]
    return [*lines, *_describe_columns(shards), *_show_documents(shards, documents, characters)]


def _describe_columns(shards: Shards) -> list[str]:
    lines = []
    if shards.wanted is not None:
        lines.append(f"wanted: {shards.wanted.values.mean(dtype=float):.1%} of the tokens")
    if shards.loss_weights is not None:
        values = shards.loss_weights.values
        mean = values.mean(dtype=float)
        lines.append(f"loss_weights: {values.min():g} to {values.max():g}, mean {mean:.4g}")
    for name in ("rewards", *sorted(f.stem for f in shards.path.glob("reward.*.f32"))):
        rewards = shards.document_column(name)
        if rewards is not None:
            known = rewards[~np.isnan(rewards)]
            mean = f", mean {known.mean(dtype=float):.4g}" if len(known) else ""
            lines.append(f"{name}: {len(known):,} of {len(rewards):,} documents{mean}")
    if shards.groups is not None:
        lines.append(
            f"groups: {int(shards.groups.max()) + 1:,}, with "
            f"{int((shards.groups >= 0).sum()):,} of {len(shards.groups):,} documents"
        )
    for file in sorted(shards.path.glob("ref_ce.*.f16")):
        column = shards.column(file.stem)
        if column is not None:
            mean = column.values.mean(dtype=float)
            lines.append(f"{file.stem}: mean {mean:.4g} nats per token")
    return lines


def _show_documents(shards: Shards, count: int, characters: int) -> list[str]:
    tokenizer = TextTokenizer.load(shards.path)
    shown = min(count, shards.manifest.documents)
    names = shards.document_names(0, shown - 1) if shown else ()
    lines, start = [], 0
    for name, end in zip(names, shards.ends[:shown].tolist(), strict=True):
        # few tokens stand for less than a character: no need to decode a whole document
        ids = shards.tokens[start : min(end, start + characters + 8)].tolist()
        text = tokenizer.decode(ids, skip_special=False)
        cut = "..." if len(text) > characters or len(ids) < end - start else ""
        lines += [
            f"document {printable(name)}: {end - start} tokens",
            repr(text[:characters]) + cut,
        ]
        start = end
    return lines
