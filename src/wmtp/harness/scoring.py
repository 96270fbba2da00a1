"""What the harness asks of a model: likelihoods of continuations and of whole texts, and texts.

Needs no harness, so that it can be used, and tested, where none is installed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

import torch

from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError
from wmtp.evaluation.continuations import Prompt, Wanted, write_samples
from wmtp.model.decoding.draft_length import Speculative
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary, load_draft_vocabulary
from wmtp.model.hf_layout import load_model
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.device import Device, choose_device
from wmtp.untrusted import read_json

_DEFAULT_NEW_TOKENS: Final = 256
_DEFAULT_BATCH: Final = 8


def place_named(device: str | None) -> Device:
    """The device; ``cuda:0``, which the harness gives if nobody asks, is the best there is.

    Raises:
        ConfigError: there is no such device.
    """
    if device in (None, "auto", "cuda:0"):
        return choose_device("auto", "fp32")
    if device not in ("cuda", "mps", "cpu"):
        raise ConfigError(f"--device is {device!r}. Use auto, cuda, mps or cpu.")
    return choose_device(device, "fp32")  # type: ignore[arg-type]  # checked above


def generation_wanted(
    options: Mapping[str, Any],
    *,
    batch_size: int = _DEFAULT_BATCH,
    speculative: Speculative = "auto",
) -> Wanted:
    """The harness's ``generation_kwargs`` as decoding understands them.

    Its ``temperature`` counts only where it asks for sampling.

    Example:
        >>> generation_wanted({"until": "x", "temperature": 0.7}).temperature
        0.0
    """
    stop = options.get("until") or []
    samples = bool(options.get("do_sample", False))
    return Wanted(
        max_new_tokens=int(options.get("max_gen_toks", _DEFAULT_NEW_TOKENS)),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        temperature=float(options.get("temperature", 0.0)) if samples else 0.0,
        top_p=float(options.get("top_p", 1.0)),
        speculative=speculative,
        batch_size=batch_size,
    )


@final
@dataclass(frozen=True)
class Scorer:
    """A model with what the harness needs to know of it.

    Attributes:
        longest: tokens of context.
        prefix: the token before a text without context: the model's beginning of text, or its end.
    """

    model: MultiTokenModel
    tokenizer: TextTokenizer
    vocabulary: DraftVocabulary
    place: Device
    longest: int
    prefix: int

    @classmethod
    def load(cls, directory: Path, device: str | None, max_length: int | None) -> Self:
        """From a model directory; see ``HarnessModel``.

        Raises:
            ConfigError: there is no such device.
        """
        place = place_named(device)
        tokenizer = TextTokenizer.load(directory)
        model = load_model(directory).to(place.torch_device).eval()
        longest = model.trunk_shape.max_seq_length
        begin = read_json(directory / "config.json").get("bos_token_id")
        return cls(
            model,
            tokenizer,
            load_draft_vocabulary(directory, model),
            place,
            min(int(max_length or longest), longest),
            begin if isinstance(begin, int) else tokenizer.eos_id,
        )

    @torch.no_grad()
    def continuation(self, context: Sequence[int], following: Sequence[int]) -> tuple[float, bool]:
        """Summed log-probability of a continuation in nats, and whether each token was likeliest.

        Of a context that is too long the end counts.
        """
        if not following:
            return 0.0, True
        ids = [*context, *following][-(self.longest + 1) :]
        count = min(len(following), len(ids) - 1)
        tokens_BS = torch.tensor([ids[:-1]], device=self.place.torch_device)
        with self.place.autocast():
            hidden_SD = self.model.next_token_hidden(tokens_BS)[0, -count:]
            logits_SV = self.model.unembed(hidden_SD).float()
        targets_S = torch.tensor(ids[-count:], device=logits_SV.device)
        chosen_S = logits_SV.log_softmax(-1).gather(1, targets_S[:, None])
        likeliest = bool((logits_SV.argmax(-1) == targets_S).all())
        return float(chosen_S.cpu().double().sum()), likeliest

    def text(self, text: str) -> float:
        """Log-probability of a whole text: each token once, with as much context as fits."""
        ids = [self.prefix, *self.tokenizer.encode(text)]
        total = 0.0
        for start in range(1, len(ids), self.longest):
            stop = min(start + self.longest, len(ids))
            context = ids[max(0, stop - self.longest - 1) : start]
            total += self.continuation(context, ids[start:stop])[0]
        return total

    def write(self, prompt: str, wanted: Wanted) -> str:
        """The text after a prompt, of which the end counts where it is too long."""
        room = self.longest - min(wanted.max_new_tokens, self.longest // 2)
        ids = self.tokenizer.encode(prompt)
        shortened = prompt if len(ids) <= room else self.tokenizer.decode(ids[-room:])
        (sample,) = write_samples(
            self.model, self.tokenizer, self.vocabulary, [Prompt("", shortened)], wanted
        )
        return sample.text
