"""Texts that a model writes after prompts, cut where a stop sequence begins; kept as they come."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
from wmtp.model.decoding.decoder import Decoder
from wmtp.model.decoding.draft_length import Speculative
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.decoding.sampling import Sampling
from wmtp.model.llama import LlamaTrunk
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.durable import storage_errors
from wmtp.runtime.line_file import LineFile
from wmtp.untrusted import open_ordinary


@dataclass(frozen=True)
class Prompt:
    """What a model is asked to continue.

    Attributes:
        task_id: of the problem.
        text: of the prompt.
    """

    task_id: str
    text: str


@dataclass(frozen=True)
class Wanted:
    """How texts are written.

    Attributes:
        samples: of each prompt; one is enough for greedy decoding.
        max_new_tokens: of each.
        stop: sequences that end a text and do not belong to it.
        temperature: 0 takes the likeliest token.
        top_p: nucleus.
        seed: fixes the draws of each prompt, whichever others are asked for.
        speculative: drafts a pass.
        batch_size: texts at a time.

    Raises:
        ValueError: several greedy samples are wanted, which are all the same.
    """

    samples: int = 1
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    speculative: Speculative = "auto"
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples of greedy decoding are one: set a temperature")


@dataclass(frozen=True)
class Sample:
    """A text that was written.

    Attributes:
        task_id: of the prompt.
        index: which of the prompt's samples.
        text: without the prompt and without the stop sequence.
        tokens: that were decoded.
        reason: why it ended: ``stop``, ``end of text``, ``length``, ``context``; or ``long
            prompt``: the prompt filled the model's context, and there is no text.
    """

    task_id: str
    index: int
    text: str
    tokens: int
    reason: str


_REASONS = {"stop_id": "end of text", "max_new_tokens": "length", "context": "context"}


def write_samples(
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    vocabulary: DraftVocabulary,
    prompts: Sequence[Prompt],
    wanted: Wanted,
) -> Iterator[Sample]:
    """Write every sample of every prompt.

    Samples of one prompt depend on its own seed alone, greedy texts on nothing, so that a part
    of the prompts gives the same texts as all of them.
    """
    together = wanted.batch_size if isinstance(model.trunk, LlamaTrunk) else 1
    if wanted.temperature == 0:
        for start in range(0, len(prompts), together):
            some = prompts[start : start + together]
            texts = _write(model, tokenizer, vocabulary, [one.text for one in some], wanted, 0)
            for prompt, (text, tokens, reason) in zip(some, texts, strict=True):
                yield Sample(prompt.task_id, 0, text, tokens, reason)
        return
    for prompt in prompts:
        for start in range(0, wanted.samples, together):
            count = min(together, wanted.samples - start)
            seed = _seed_of(wanted.seed, prompt.task_id, start)
            texts = _write(model, tokenizer, vocabulary, [prompt.text] * count, wanted, seed)
            for index, (text, tokens, reason) in enumerate(texts, start=start):
                yield Sample(prompt.task_id, index, text, tokens, reason)


def _seed_of(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _write(
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    vocabulary: DraftVocabulary,
    prompts: Sequence[str],
    wanted: Wanted,
    seed: int,
) -> list[tuple[str, int, str]]:
    """Text, number of tokens and reason of each; nothing after a prompt that leaves no room."""
    ids = [[*tokenizer.bos_ids, *tokenizer.encode(text)] or [tokenizer.eos_id] for text in prompts]
    fits = [len(one) < model.trunk_shape.max_seq_length for one in ids]
    if not all(fits):
        some = [text for text, fit in zip(prompts, fits, strict=True) if fit]
        rest = iter(_write(model, tokenizer, vocabulary, some, wanted, seed) if some else [])
        return [next(rest) if fit else ("", 0, "long prompt") for fit in fits]
    decoder = Decoder(
        model,
        ids,
        max_new_tokens=wanted.max_new_tokens,
        sampling=Sampling(wanted.temperature, wanted.top_p, seed),
        stop_ids=(tokenizer.eos_id,),
        speculative=wanted.speculative,
        vocabulary=vocabulary,
    )
    stopped = [False] * len(prompts)
    while not decoder.done:
        for row, new in enumerate(decoder.round()):
            text = decoder.texts[row]
            if new and wanted.stop and not stopped[row]:
                written = tokenizer.decode(text.ids[text.prompt :])
                if cut_at(written, wanted.stop) < len(written):
                    stopped[row] = True
                    text.reason = "stop_id"
    found = []
    for text, was_stopped in zip(decoder.texts, stopped, strict=True):
        written = tokenizer.decode(text.ids[text.prompt :])
        reason = "stop" if was_stopped else _REASONS[text.reason or "max_new_tokens"]
        cut = cut_at(written, wanted.stop)
        found.append((written[:cut], len(text.ids) - text.prompt, reason))
    return found


def cut_at(text: str, stop: Iterable[str]) -> int:
    r"""Where the first stop sequence begins; the length of the text if there is none.

    Example:
        >>> cut_at("return 1\\nclass A", ["\\nclass", "\\ndef"])
        8
    """
    places = [text.find(sequence) for sequence in stop]
    return min((place for place in places if place >= 0), default=len(text))


@final
class SampleFile:
    """Samples in a JSON-lines file, one whole line each; an interrupted run goes on after them.

    Args:
        path: of the file.
        facts: what the samples depend on; they must be those of the samples that are there.

    Raises:
        DataError: the file is of other facts, or is none of ours.
        StorageError: it cannot be opened.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        first = json.dumps({"facts": facts}, sort_keys=True).encode()
        lines = _whole_lines(path)
        if lines and lines[0] != first:
            raise DataError(
                f"{path} holds samples of another model or of other settings. Choose another "
                "--out, or remove it."
            )
        self.samples = [_read(path, line) for line in lines[1:]]
        self._have = {(one.task_id, one.index) for one in self.samples}
        self._file = LineFile(path)
        if not lines:
            self._file.append(first + b"\n")

    def missing(self, prompts: Sequence[Prompt], samples: int) -> list[Prompt]:
        """Prompts of which not all samples are there; those are written anew, and told once."""
        have = Counter(task_id for task_id, _ in self._have)
        return [prompt for prompt in prompts if have[prompt.task_id] < samples]

    def add(self, sample: Sample) -> None:
        """Keep a sample, if it is not there.

        Raises:
            StorageError: the disk refused.
        """
        key = (sample.task_id, sample.index)
        if key not in self._have:
            self._have.add(key)
            self.samples.append(sample)
            self._file.append(json.dumps(vars(sample)).encode() + b"\n")

    def close(self) -> None:
        """Return when all is on the disk."""
        self._file.close()


def _whole_lines(path: Path) -> list[bytes]:
    """Every whole line; a torn last one, of a process that was killed, is removed."""
    if not os.path.lexists(path):
        return []
    try:
        with os.fdopen(open_ordinary(path), "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with storage_errors(f"{path} could not be cut back"):
            os.truncate(path, len(whole))
    return whole.splitlines()


def _read(path: Path, line: bytes) -> Sample:
    try:
        return Sample(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} holds no samples of wmtp ({error}).") from error
