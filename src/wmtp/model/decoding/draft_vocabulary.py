"""The tokens that drafts are chosen from: all, or those that the heads' training text is made of.

With a large vocabulary most of a draft's time goes into the unembedding. A token that is left out
is never drafted, so that at its place the trunk has to speak for itself; what the trunk says is
never cut short.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.packing import SMALLEST_PACKED, PackedMatrix
from wmtp.untrusted import read_json

DRAFT_VOCABULARY_NAME: Final = "draft_vocabulary.json"
SHARE_DRAFTED: Final = 0.98
"""Of the tokens of the training data, that a trimmed vocabulary covers."""


def pays_to_trim(tokens: int, vocab_size: int) -> bool:
    """Whether drafting from so few tokens saves a product worth speaking of."""
    return 2 * tokens <= vocab_size and vocab_size >= 8192


@final
class DraftVocabulary:
    """What drafts are chosen from, ready for products.

    Args:
        model: whose heads draft.
        tokens: ids; None for all.

    Raises:
        ValueError: there are no tokens, one comes twice, or the model does not know one.
    """

    def __init__(self, model: MultiTokenModel, tokens: Sequence[int] | None = None) -> None:
        self._model = model
        self._products: dict[int, Callable[[Tensor], Tensor]] = {}
        self._ids: Tensor | None = None
        if tokens is None:
            return
        size = model.trunk_shape.vocab_size
        if not 0 < len(set(tokens)) == len(tokens) or not 0 <= min(tokens) <= max(tokens) < size:
            raise ValueError(f"{len(tokens)} tokens, but they must be different ids below {size}")
        self._ids = torch.tensor(sorted(tokens), device=model.device)

    @property
    def size(self) -> int:
        """How many tokens there are to draft."""
        return self._model.trunk_shape.vocab_size if self._ids is None else len(self._ids)

    def logits(self, hidden_BD: Tensor, matrix_VD: Tensor) -> Tensor:
        """Logits ``[B, n]`` of the tokens, in the order of ``token``."""
        shared = matrix_VD is self._model.unembedding_VD
        if self._ids is None:
            return self._model.unembed(hidden_BD) if shared else hidden_BD @ matrix_VD.T
        product = self._products.get(id(matrix_VD))
        if product is None:
            product = self._products[id(matrix_VD)] = self._product(matrix_VD.detach()[self._ids])
        return product(hidden_BD)

    def _product(self, matrix_ND: Tensor) -> Callable[[Tensor], Tensor]:
        is_packed = self._model.product_with_unembedding is not None
        if is_packed and matrix_ND.numel() >= SMALLEST_PACKED:
            return PackedMatrix(matrix_ND)
        return lambda hidden_BD: hidden_BD @ matrix_ND.T

    def token(self, index_B: Tensor) -> Tensor:
        """Ids of tokens by their place in the logits."""
        return index_B if self._ids is None else self._ids[index_B]

    def spread(self, p_BN: Tensor) -> Tensor:
        """Probabilities among the tokens as ones among all, ``[B, V]``."""
        if self._ids is None:
            return p_BN
        p_BV = p_BN.new_zeros(len(p_BN), self._model.trunk_shape.vocab_size)
        return p_BV.index_copy_(1, self._ids, p_BN)


def write_draft_vocabulary(folder: Path, tokens: Sequence[int]) -> None:
    """Put the tokens into a model directory.

    Raises:
        OSError: the file could not be written.
    """
    (folder / DRAFT_VOCABULARY_NAME).write_text(json.dumps({"tokens": sorted(tokens)}) + "\n")


def load_draft_vocabulary(directory: Path, model: MultiTokenModel) -> DraftVocabulary:
    """The draft vocabulary of a model directory; all tokens where it names none.

    Raises:
        CheckpointError: its file is not one that fits the model.
    """
    path = directory / DRAFT_VOCABULARY_NAME
    if model.heads is None or not path.exists():
        return DraftVocabulary(model)
    try:
        tokens = read_json(path)["tokens"]
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise ValueError("tokens are no list of ids")
        return DraftVocabulary(model, tokens)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no draft vocabulary of this model ({error}). Remove it: drafts are then "
            "chosen from all tokens."
        ) from error
