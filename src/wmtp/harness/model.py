"""A model directory as lm-evaluation-harness asks for it.

Imported only where the harness is installed (extra ``[lm-eval]``); what it computes is in
``scoring.py``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from wmtp.errors import ConfigError
from wmtp.harness.scoring import Scorer, generation_wanted

MODEL_NAME: Final = "wmtp"


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
        self._scorer = Scorer.load(Path(pretrained), device, max_length)
        self._batch_size = int(batch_size) if str(batch_size).isdigit() else 8
        self._speculative = speculative if speculative == "auto" else int(speculative)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._scorer.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the model's beginning of text, or its end."""
        return self._scorer.prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, with the beginning that the model was trained with unless told."""
        tokenizer = self._scorer.tokenizer
        front = [] if add_special_tokens is False else tokenizer.bos_ids
        return [*front, *tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        **_: Any,
    ) -> list[tuple[float, bool]]:
        return [self._scorer.continuation(context, following) for _, context, following in requests]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts: every token once, with as much context as fits."""
        return [self._scorer.text(request.args[0]) for request in requests]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts after prompts, until a stop sequence."""
        found = []
        for request in requests:
            prompt, options = request.args
            wanted = generation_wanted(
                options,
                batch_size=self._batch_size,
                speculative=self._speculative,  # type: ignore[arg-type]
            )
            found.append(self._scorer.write(prompt, wanted))
        return found
