"""A draft is what its head says when it is asked as in training."""

import pytest
import torch
from torch import Tensor

from tests.model.toys import KINDS, toy_model
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.decoding.drafters import build_drafter
from wmtp.model.decoding.readers import build_reader
from wmtp.model.decoding.row_cache import HOLE
from wmtp.model.multi_token import MultiTokenModel

CASES = [(kind, "post_norm", "chained") for kind in KINDS]
CASES += [("sequential", hidden, context) for hidden in ("post_norm", "pre_norm")
          for context in ("trunk", "chained")]  # fmt: skip


@pytest.mark.parametrize(("kind", "hidden", "context"), CASES)
@pytest.mark.parametrize("trunk", ["llama", "qwen3"])
@torch.no_grad()
def test_drafts_are_those_of_a_forward_pass(
    kind: str, hidden: str, context: str, trunk: str
) -> None:
    """Three texts grow by 1 to 4 tokens a round, and all heads draft, or fewer.

    What they say is held against training's forward pass over the text and its own drafts.
    """
    model = toy_model(4, hidden, kind=kind, context=context, trunk=trunk)
    generator = torch.Generator().manual_seed(0)
    reader = build_reader(model.trunk, 3, 8)
    drafter = build_drafter(model, DraftVocabulary(model), 3, 8)
    assert drafter is not None
    texts = [torch.randint(0, 64, (n,), generator=generator).tolist() for n in (2, 5, 1)]
    read = [0, 0, 0]
    for count in (3, 3, 1, 2, 3, 1, 1, 3):
        tokens, places = unread(texts, read)
        drafter.follow(reader.read(tokens, places), places, max(map(len, texts)))
        read = [len(text) - 1 for text in texts]
        if min(read) > 0:
            found: list[Tensor] = []

            def pick(logits_BV: Tensor, found: list[Tensor] = found) -> Tensor:
                found.append(logits_BV)
                return logits_BV.argmax(-1)

            drafts_KB = torch.stack(drafter.draft(texts, count, pick))
            for row, text in enumerate(texts):
                expected_KV = forward(model, text, drafts_KB[:, row].tolist())
                for k in range(count):
                    torch.testing.assert_close(found[k][row], expected_KV[k], atol=1e-4, rtol=1e-4)
        for text in texts:
            more = int(torch.randint(1, 5, (), generator=generator))
            text += torch.randint(0, 64, (more,), generator=generator).tolist()


def unread(texts: list[list[int]], read: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens that the trunk has still to read, all but each text's last, and where they stand."""
    rows = [text[done:-1] for text, done in zip(texts, read, strict=True)]
    width = max(1, *map(len, rows))
    tokens = [[0] * (width - len(row)) + row for row in rows]
    places = [
        [HOLE] * (width - len(row)) + list(range(done, done + len(row)))
        for row, done in zip(rows, read, strict=True)
    ]
    return torch.tensor(tokens), torch.tensor(places)


def forward(model: MultiTokenModel, text: list[int], drafts: list[int]) -> Tensor:
    """Logits of heads 1, 2, ... at the last row that the trunk has read, ``[H - 1, V]``."""
    stream_T = torch.tensor((text + drafts + [0, 0, 0])[: len(text) + 3])
    rows = len(text) - 1
    targets_SH = stream_T[1:].unfold(0, 4, 1)[:rows]
    return model.logits(stream_T[None, :rows], targets_SH[None])[0, -1, 1:]
