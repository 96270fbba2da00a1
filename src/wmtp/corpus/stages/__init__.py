"""What happens to a document between its reader and the search for duplicates, in this order."""

from wmtp.corpus.stages.base import CountingStage, Counts
from wmtp.corpus.stages.boilerplate import Boilerplate
from wmtp.corpus.stages.contamination import Contamination, EvaluationNgrams
from wmtp.corpus.stages.encoding import WrongEncoding
from wmtp.corpus.stages.language import Language
from wmtp.corpus.stages.links import LinkList
from wmtp.corpus.stages.normalize import Normalize
from wmtp.corpus.stages.private_data import PrivateData
from wmtp.corpus.stages.repetition import Repetition
from wmtp.corpus.stages.shape import Shape

__all__ = [
    "Boilerplate",
    "Contamination",
    "CountingStage",
    "Counts",
    "EvaluationNgrams",
    "Language",
    "LinkList",
    "Normalize",
    "PrivateData",
    "Repetition",
    "Shape",
    "WrongEncoding",
    "default_stages",
]


def default_stages(evaluation: EvaluationNgrams | None = None) -> tuple[CountingStage, ...]:
    """Every stage with its default settings, cheap ones first.

    Normalization comes first, so that all others see NFC; contamination is looked for before
    private data is replaced, because evaluation texts keep theirs.

    Args:
        evaluation: what must not be trained on; without it nothing is looked for.
    """
    stages: tuple[CountingStage, ...] = (
        Normalize(),
        WrongEncoding(),
        Shape(),
        LinkList(),
        Boilerplate(),
        Repetition(),
        Language(),
    )
    if evaluation is not None:
        stages += (Contamination(evaluation),)
    return (*stages, PrivateData())
