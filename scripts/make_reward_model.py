"""Make a tiny reward model: a Llama that tells right programs from wrong ones, badly but truly.

For tests and first runs of ``weighting: {algorithm: critic-wmtp, reward: model}``. It is trained
here and now on documents with rewards; no numbers of anybody else's are in it.

    python scripts/make_reward_model.py --tokenizer runs/NAME/final \
        --data datasets/contest_small.jsonl --out models/reward
"""

import argparse
import random
import warnings
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import LlamaConfig, LlamaForSequenceClassification

from wmtp.data.documents import BadLines, Document
from wmtp.data.sources import Source, list_files, read_documents
from wmtp.data.tokenizer import TextTokenizer

LONGEST_TOKENS = 1024


def labelled_texts(path: Path) -> list[tuple[str, float]]:
    """Texts with their rewards, prompt and completion joined."""
    source = Source(str(path))
    if list_files(source).format == "contest":
        source = Source(str(path), solutions="all")
    bad = BadLines()
    found = [
        ("".join(segment.text for segment in document.segments), document.reward)
        for document in read_documents(source, bad)
        if isinstance(document, Document) and document.reward is not None
    ]
    for line in bad.summary():
        warnings.warn(line, stacklevel=2)
    if not found:
        raise SystemExit(f"{path} has no document with a reward (reward or is_correct).")
    return found


def make_reward_model(
    texts: list[tuple[str, float]], tokenizer: TextTokenizer, out: Path, steps: int, seed: int
) -> float:
    """Train on the texts and write a directory; returns the last losses' mean in nats."""
    torch.manual_seed(seed)
    order = random.Random(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LONGEST_TOKENS,
        num_labels=1, bos_token_id=None, eos_token_id=tokenizer.eos_id, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        text, reward = order.choice(texts)
        ids = [*tokenizer.bos_ids, *tokenizer.encode(text)][-LONGEST_TOKENS:]
        logit = model(input_ids=torch.tensor([ids])).logits[0, 0]
        loss = binary_cross_entropy_with_logits(logit, torch.tensor(reward))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(out)
    tokenizer.save(out)
    last = losses[-max(1, steps // 5) :]
    return sum(last) / len(last)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="tokenizer.json or its folder"
    )
    parser.add_argument("--data", type=Path, required=True, help="documents with rewards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    texts = labelled_texts(given.data)
    tokenizer = TextTokenizer.load(given.tokenizer)
    loss = make_reward_model(texts, tokenizer, given.out, given.steps, given.seed)
    print(f"{given.out}: {len(texts)} texts, cross-entropy of the last steps {loss:.3f} nats")


if __name__ == "__main__":
    main()
