"""Small model directories with a tokenizer, for what hands models over to other engines."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.model.toys import toy_model
from wmtp.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, config_content
from wmtp.export.gguf_tokenizer import QWEN35_WORDS
from wmtp.model.hf_layout import save_model
from wmtp.model.stored_config import SpecialTokens
from wmtp.verify.prompts import strings_to_tokenize

VOCABULARY = 320
END = "<|endoftext|>"


def words(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cut a text as a pattern says."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])


def write_tokenizer(
    folder: Path,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
    *,
    size: int = VOCABULARY,
    with_front: bool = True,
    ignore_merges: bool = False,
) -> None:
    model = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    model.pre_tokenizer = pre_tokenizer or words(QWEN35_WORDS)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(strings_to_tokenize(500, seed=1), trainer)
    if with_front:
        model.post_processor = processors.TemplateProcessing(
            single=f"{END} $A", special_tokens=[(END, 0)]
        )
    folder.mkdir(exist_ok=True)
    (folder / TOKENIZER_FILE).write_text(model.to_str(), encoding="utf-8")
    (folder / CONFIG_FILE).write_bytes(config_content(END, END if with_front else None))


def write_model(
    folder: Path, horizon: int = 3, hidden: str = "post_norm", **changes: object
) -> Path:
    """A toy with random numbers everywhere, beside a tokenizer that llama.cpp has too."""
    model = toy_model(
        horizon,
        hidden,
        **{"vocab_size": VOCABULARY, "context": "trunk", **changes},  # type: ignore[arg-type]
    )
    write_tokenizer(folder)
    save_model(model, folder, special_tokens=SpecialTokens(0, (0,)))
    return folder
