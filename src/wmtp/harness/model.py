"""A model directory as lm-evaluation-harness asks for it.

Imported only where the harness is installed (extra ``[lm-eval]``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import ConfigError
from wmtp.evaluation.continuations import Prompt, Wanted, write_samples
from wmtp.model.decoding.draft_vocabulary import load_draft_vocabulary
from wmtp.model.hf_layout import load_model
from wmtp.runtime.device import Device, choose_device
from wmtp.untrusted import read_json

MODEL_NAME: Final = "wmtp"
_DEFAULT_NEW_TOKENS: Final = 256


def _place_named(device: str | None) -> Device:
    """The device; ``cuda:0``, which the harness gives if nobody asks, is the best there is."""
    if device in (None, "auto", "cuda:0"):
        return choose_device("auto", "fp32")
    if device not in ("cuda", "mps", "cpu"):
        raise ConfigError(f"--device is {device!r}. Use auto, cuda, mps or cpu.")
    return choose_device(device, "fp32")  # type: ignore[arg-type]  # checked above


@register_model(MODEL_NAME)
class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """Head 0 for likelihoods, all heads for decoding.

    Args:
        pretrained: a model directory, such as ``runs/NAME/final``.
        device: auto, cuda, mps or cpu.
        batch_size: texts that are written at a time.
        max_length: tokens of context; that of the model if absent.
        speculative: drafts a pass; ``auto``, 0 for none.

    Raises:
        ConfigError: an argument is not known.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 8,
        max_length: int | None = None,
        speculative: int | str = "auto",
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = [name for name in others if name != "max_batch_size"]
        if unknown:
            raise ConfigError(
                f"--model_args has {', '.join(unknown)}, but {MODEL_NAME} knows pretrained, "
                "device, batch_size, max_length and speculative."
            )
        directory = Path(pretrained)
        self._place = _place_named(device)
        self._tokenizer = TextTokenizer.load(directory)
        self._model = load_model(directory).to(self._place.torch_device).eval()
        self._vocabulary = load_draft_vocabulary(directory, self._model)
        self._batch_size = int(batch_size) if str(batch_size).isdigit() else 8
        longest = self._model.trunk_shape.max_seq_length
        self._longest = min(int(max_length or longest), longest)
        begin = read_json(directory / "config.json").get("bos_token_id")
        self._prefix = begin if isinstance(begin, int) else self._tokenizer.eos_id
        self._speculative = speculative if speculative == "auto" else int(speculative)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the model's beginning of text, or its end."""
        return self._prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, with the beginning that the model was trained with unless told."""
        front = [] if add_special_tokens is False else self._tokenizer.bos_ids
        return [*front, *self._tokenizer.encode(string)]

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        **_: Any,
    ) -> list[tuple[float, bool]]:
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Summed log-probability of a continuation, and whether each token was the likeliest."""
        if not continuation:
            return 0.0, True
        ids = [*context, *continuation][-(self._longest + 1) :]
        count = min(len(continuation), len(ids) - 1)
        tokens_BS = torch.tensor([ids[:-1]], device=self._place.torch_device)
        with self._place.autocast():
            hidden_SD = self._model.next_token_hidden(tokens_BS)[0, -count:]
            logits_SV = self._model.unembed(hidden_SD).float()
        targets_S = torch.tensor(ids[-count:], device=logits_SV.device)
        chosen_S = logits_SV.log_softmax(-1).gather(1, targets_S[:, None])
        likeliest = bool((logits_SV.argmax(-1) == targets_S).all())
        return float(chosen_S.cpu().double().sum()), likeliest

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts: every token once, with as much context as fits."""
        return [self._score_all(request.args[0]) for request in requests]

    @torch.no_grad()
    def _score_all(self, text: str) -> float:
        ids = [self.prefix_token_id, *self._tokenizer.encode(text)]
        total = 0.0
        for start in range(1, len(ids), self._longest):
            stop = min(start + self._longest, len(ids))
            context = ids[max(0, stop - self._longest - 1) : start]
            total += self._score(context, ids[start:stop])[0]
        return total

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts after prompts, until a stop sequence."""
        found = []
        for request in requests:
            prompt, options = request.args
            stop = options.get("until") or []
            wanted = Wanted(
                max_new_tokens=int(options.get("max_gen_toks", _DEFAULT_NEW_TOKENS)),
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
                temperature=float(options.get("temperature", 0.0))
                if options.get("do_sample", False)
                else 0.0,
                top_p=float(options.get("top_p", 1.0)),
                speculative=self._speculative,  # type: ignore[arg-type]
                batch_size=self._batch_size,
            )
            room = self._longest - min(wanted.max_new_tokens, self._longest // 2)
            ids = self._tokenizer.encode(prompt)
            shortened = prompt if len(ids) <= room else self._tokenizer.decode(ids[-room:])
            (sample,) = write_samples(
                self._model, self._tokenizer, self._vocabulary, [Prompt("", shortened)], wanted
            )
            found.append(sample.text)
        return found
