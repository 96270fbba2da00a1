"""Continues several texts at once: the heads draft, one pass of the trunk verifies.

A round reads the last token of each text and its drafts. What the trunk would have said after each
of them is then known, and as many drafts are taken as it agrees with; the token after the last
of these is its own. So every round gives at least one token, and the host waits for the device
once.

Source:
    Stern et al. 2018 (arXiv:1811.03115) for heads that draft; Leviathan et al. 2023
    (arXiv:2211.17192) for drafts that are drawn and still leave the distribution what it is.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from wmtp.model.decoding.draft_length import DraftLength, Speculative
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.decoding.drafters import build_drafter
from wmtp.model.decoding.readers import build_reader
from wmtp.model.decoding.repetition import without_repetition
from wmtp.model.decoding.row_cache import HOLE
from wmtp.model.decoding.sampling import Sampling, draw, probabilities, uniforms
from wmtp.model.decoding.steps import PLAIN_STEPS, Steps
from wmtp.model.multi_token import MultiTokenModel

StopReason = Literal["stop_id", "max_new_tokens", "context"]
"""Why decoding ended: a stop token, enough tokens, or no room for more in the model's context."""

_SLOTS_BEYOND_THE_PROMPT = 128
_FEWEST_COMPILED_SLOTS = 256


@dataclass
class Figures:
    """What decoding did.

    Attributes:
        tokens: that were added to all texts together.
        passes: of the trunk, the one over the prompts included.
        seconds: they took, the one over the prompts included.
        drafted: for each depth, how often its draft was looked at: those before it were accepted.
        accepted: for each depth, how often it was taken.
        text_passes: passes after the prompts', counted once for each text that went on.
        plain_seconds: least time of a pass without drafts, None where there was none.
        decoding_seconds: of the passes after the prompts'.
        decoding_tokens: that these gave.
    """

    drafted: list[int]
    accepted: list[int]
    tokens: int = 0
    passes: int = 0
    text_passes: int = 0
    seconds: float = 0.0
    plain_seconds: float | None = None
    decoding_seconds: float = 0.0
    decoding_tokens: int = 0

    @property
    def acceptance(self) -> list[float]:
        """Share of each depth's drafts that were taken; depths never drafted are left out."""
        pairs = zip(self.accepted, self.drafted, strict=True)
        return [accepted / drafted for accepted, drafted in pairs if drafted]

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass gave each text that it went on with; prompts' pass left out."""
        return self.decoding_tokens / max(1, self.text_passes)

    @property
    def speed_up(self) -> float | None:
        """Against passes without drafts, measured between the others; None if there were none."""
        if self.plain_seconds is None or not self.decoding_seconds:
            return None
        return self.decoding_tokens * self.plain_seconds / self.decoding_seconds


@dataclass
class Text:
    """One text that is being continued.

    Attributes:
        ids: its tokens, prompt included.
        prompt: how many are the prompt's.
        reason: why it ended; None while it goes on.
    """

    ids: list[int]
    prompt: int = field(init=False)
    reason: StopReason | None = None

    def __post_init__(self) -> None:
        self.prompt = len(self.ids)


@final
class Decoder:
    """Rounds of drafting and verifying, until every text has ended."""

    def __init__(
        self,
        model: MultiTokenModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stop_ids: Collection[int],
        speculative: Speculative,
        vocabulary: DraftVocabulary | None = None,
        compiled: bool = False,
    ) -> None:
        """Read nothing yet; the arguments are those of ``generate``."""
        rows = len(prompts)
        self.texts = [Text(list(prompt)) for prompt in prompts]
        self._model, self._sampling, self._stop_ids = model, sampling, frozenset(stop_ids)
        self._max_new_tokens = max_new_tokens
        self._context = model.trunk_shape.max_seq_length
        steps = Steps(model.horizon) if compiled else PLAIN_STEPS
        capacity = self._capacity(max(map(len, prompts)), steps)
        self._reader = build_reader(model.trunk, rows, capacity, steps)
        self._vocabulary = vocabulary or DraftVocabulary(model)
        self._drafter = (
            build_drafter(model, self._vocabulary, rows, capacity, steps)
            if speculative != 0
            else None
        )
        depths = 0 if self._drafter is None else model.horizon - 1
        self._length = DraftLength(speculative, depths)
        self._draws = torch.Generator().manual_seed(sampling.seed)
        self.figures = Figures([0] * depths, [0] * depths)
        if max_new_tokens < 1:
            for text in self.texts:
                text.reason = "max_new_tokens"

    def _capacity(self, prompt: int, steps: Steps) -> int:
        """Slots to begin with."""
        if not steps.are_compiled:
            added = min(self._max_new_tokens, _SLOTS_BEYOND_THE_PROMPT)
            return min(prompt + added, self._context) + self._model.horizon
        # each capacity is a shape of its own: few of them, and room for holes
        needed = min(prompt + self._max_new_tokens, self._context) + self._model.horizon
        return max(_FEWEST_COMPILED_SLOTS, 1 << (2 * needed - 1).bit_length())

    @property
    def done(self) -> bool:
        """Whether every text has ended."""
        return all(text.reason is not None for text in self.texts)

    @torch.no_grad()
    def round(self) -> list[list[int]]:
        """Go on with every text that has not ended; the tokens that are new in each."""
        started = time.perf_counter()
        is_first = self.figures.passes == 0
        count = 0 if is_first else self._drafts_to_make()
        drafts, chances = self._draft(count)
        unread = [
            [] if text.reason else text.ids if is_first else text.ids[-1:] for text in self.texts
        ]
        starts = [0 if is_first else len(text.ids) - 1 for text in self.texts]
        tokens_BS, positions = self._inputs(unread, starts, drafts)
        positions_BS = torch.tensor(positions, device=self._model.device)
        states = self._reader.read(tokens_BS, positions_BS)
        logits_BSV = self._model.unembed(states.post_norm[:, -count - 1 :])
        if self._sampling.looks_back:
            logits_BSV = self._without_repetition(logits_BSV, drafts)
        accepted, new = self._verify(logits_BSV, drafts, chances)

        going_on = sum(text.reason is None for text in self.texts)
        kept = [0 if text.reason else a for text, a in zip(self.texts, accepted, strict=True)]
        taken = [self._add(text, ids) for text, ids in zip(self.texts, new, strict=True)]
        lengths = [len(text.ids) - 1 for text in self.texts]
        self._reader.forget(lengths, count - max(kept))
        if self._drafter is not None:
            for row, length in zip(positions, lengths, strict=True):
                row[:] = [place if place < length else HOLE for place in row]
            kept_BS = torch.tensor(positions, device=self._model.device)
            self._drafter.follow(states, kept_BS, max(lengths))
        self._note(count, kept, taken, going_on, time.perf_counter() - started)
        return taken

    def _drafts_to_make(self) -> int:
        """No more than there is room for, in the model's context and in what is asked for."""
        going_on = [text for text in self.texts if text.reason is None]
        room = self._context - max(len(text.ids) for text in going_on)
        wanted = max(self._max_new_tokens - len(t.ids) + t.prompt for t in going_on) - 1
        return max(0, min(self._length.next(), room, wanted))

    def _draft(self, count: int) -> tuple[list[Tensor], list[Tensor]]:
        """Drafts ``[B]``, and what each was drawn from, ``[B, V]``."""
        chances: list[Tensor] = []

        def pick(logits_BN: Tensor) -> Tensor:
            if self._sampling.is_greedy:
                return self._vocabulary.token(logits_BN.argmax(dim=-1))
            p_BN = probabilities(logits_BN, self._sampling)
            chances.append(self._vocabulary.spread(p_BN))
            uniform_B = uniforms(p_BN.shape[:1], self._draws, p_BN.device)
            return self._vocabulary.token(draw(p_BN, uniform_B))

        if not count or self._drafter is None:
            return [], []
        drafts = self._drafter.draft([text.ids for text in self.texts], count, pick)
        return drafts, chances

    def _inputs(
        self, unread: Sequence[Sequence[int]], starts: Sequence[int], drafts: Sequence[Tensor]
    ) -> tuple[Tensor, list[list[int]]]:
        """Tokens ``[B, S]`` and where each stands; shorter rows are filled up in front."""
        width, count = max(map(len, unread)), len(drafts)
        rows, positions = [], []
        for tokens, start in zip(unread, starts, strict=True):
            front = width - len(tokens)
            rows.append([0] * front + list(tokens))
            stop = start + len(tokens) + count if tokens else start
            fill = front + (0 if tokens else count)
            positions.append([HOLE] * fill + list(range(start, stop)))
        known_BU = torch.tensor(rows, device=self._model.device)
        return torch.cat([known_BU, *(draft[:, None] for draft in drafts)], dim=1), positions

    def _without_repetition(self, logits_BSV: Tensor, drafts: Sequence[Tensor]) -> Tensor:
        """What plain decoding would choose from after each text and after each of its drafts.

        The drafts are looked at before they are verified, so that the host waits once more.
        """
        rows = logits_BSV.shape[0]
        drafted = torch.stack(list(drafts), dim=1).tolist() if drafts else [[]] * rows
        so_far = [
            [*text.ids, *own[:place]] if text.reason is None else []
            for text, own in zip(self.texts, drafted, strict=True)
            for place in range(len(drafts) + 1)
        ]
        sampling = self._sampling
        return without_repetition(
            logits_BSV.flatten(0, 1),
            so_far,
            penalty=sampling.repetition_penalty,
            ngram=sampling.no_repeat_ngram,
        ).view_as(logits_BSV)

    def _verify(
        self, logits_BSV: Tensor, drafts: Sequence[Tensor], chances: Sequence[Tensor]
    ) -> tuple[list[int], list[list[int]]]:
        """How many drafts of each text are accepted; these, and the trunk's own token."""
        if self._sampling.is_greedy:
            own_BS = logits_BSV.argmax(dim=-1)
            drafts_BK = torch.stack([*drafts, own_BS[:, -1]], dim=1)
            agrees_BK = drafts_BK[:, :-1] == own_BS[:, :-1]
            accepted_B = agrees_BK.cumprod(dim=1).sum(dim=1)
            last_B = own_BS.gather(1, accepted_B[:, None])[:, 0]
        else:
            accepted_B, last_B = self._verify_draws(logits_BSV, drafts, chances)
            drafts_BK = torch.stack([*drafts, last_B], dim=1)
        told = torch.cat((accepted_B[:, None], last_B[:, None], drafts_BK), dim=1).tolist()
        accepted = [int(row[0]) for row in told]
        return accepted, [[*row[2 : 2 + row[0]], row[1]] for row in told]

    def _verify_draws(
        self, logits_BSV: Tensor, drafts: Sequence[Tensor], chances: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Take draft ``d`` with probability ``min(1, p(d) / q(d))``, else draw from ``p - q``."""
        p_BSV = probabilities(logits_BSV, self._sampling)
        nothing_BV = torch.zeros_like(p_BSV[:, 0])
        q_BSV = torch.stack([*chances, nothing_BV], dim=1)
        rows, count = p_BSV.shape[0], len(drafts)
        uniform_BS = uniforms(torch.Size((rows, count + 1)), self._draws, p_BSV.device)
        accepted_B = torch.zeros(rows, dtype=torch.int64, device=p_BSV.device)
        if drafts:
            drafts_BK1 = torch.stack(list(drafts), dim=1).unsqueeze(2)
            p_BK = p_BSV[:, :-1].gather(2, drafts_BK1).squeeze(2)
            q_BK = q_BSV[:, :-1].gather(2, drafts_BK1).squeeze(2)
            accepted_B = (uniform_BS[:, :-1] * q_BK < p_BK).cumprod(dim=1).sum(dim=1)
        at_B11 = accepted_B[:, None, None].expand(-1, 1, p_BSV.shape[2])
        p_BV, q_BV = p_BSV.gather(1, at_B11).squeeze(1), q_BSV.gather(1, at_B11).squeeze(1)
        rest_BV = (p_BV - q_BV).clamp(min=0)
        rest_BV = torch.where(rest_BV.sum(1, keepdim=True) > 0, rest_BV, p_BV)  # p = q
        return accepted_B, draw(rest_BV, uniform_BS[:, -1])

    def _add(self, text: Text, ids: Sequence[int]) -> list[int]:
        """Add new tokens until the text ends; those that it took."""
        taken: list[int] = []
        for token in ids:
            if text.reason is not None:
                break
            if token in self._stop_ids:
                text.reason = "stop_id"
                break
            text.ids.append(token)
            taken.append(token)
            if len(text.ids) - text.prompt >= self._max_new_tokens:
                text.reason = "max_new_tokens"
            elif len(text.ids) > self._context:
                text.reason = "context"
        return taken

    def _note(
        self,
        count: int,
        accepted: Sequence[int],
        taken: Sequence[Sequence[int]],
        going_on: int,
        seconds: float,
    ) -> None:
        is_first, tokens = self.figures.passes == 0, sum(map(len, taken))
        self._length.learn(count, accepted, None if is_first else seconds)
        figures = self.figures
        figures.passes += 1
        figures.tokens += tokens
        figures.seconds += seconds
        if not is_first:
            figures.decoding_tokens += tokens
            figures.text_passes += going_on
            figures.decoding_seconds += seconds
        for rows in accepted:
            for depth in range(min(rows + 1, count)):
                figures.drafted[depth] += 1
                figures.accepted[depth] += depth < rows
        figures.plain_seconds = self._length.seconds(0)
