"""The readers and stages as blocks of datatrove, for its executors on a machine, SLURM or Ray.

    from datatrove.executor import SlurmPipelineExecutor
    from datatrove.pipeline.writers import JsonlWriter
    from wmtp.corpus.blocks import blocks
    from wmtp.corpus.settings import load_corpus_settings

    pipeline = [*blocks(load_corpus_settings(Path("sources.yaml"))), JsonlWriter("s3://...")]

Files are shared out among tasks. The search for duplicates over all documents is datatrove's own
(``MinhashDedupSignature`` and what follows it) or that of ``wmtp data prepare`` on what comes out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from datatrove.data import Document as Block
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from wmtp.corpus.document import Document, Dropped, Place
from wmtp.corpus.pipeline.build import build_reader, build_stages, evaluation_ngrams, origin_of
from wmtp.corpus.pipeline.plan import find_files
from wmtp.corpus.readers.reading import read
from wmtp.corpus.settings import CorpusSettings, SourceSection
from wmtp.corpus.stages import CountingStage

_OURS = ("source", "license", "place")


def blocks(settings: CorpusSettings) -> list[PipelineStep]:
    """A reader for each source, then every stage that is enabled, in the order of the settings.

    Raises:
        DataError: an evaluation file cannot be read.
    """
    stages = build_stages(settings, evaluation_ngrams(settings))
    return [*(SourceReader(source) for source in settings.sources), *map(StageBlock, stages)]


@final
class SourceReader(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Documents of a source, behind those that come in; task ``rank`` reads each n-th file."""

    type = "📖 - READER"

    def __init__(self, source: SourceSection) -> None:
        """Read nothing yet."""
        self.name = source.name
        super().__init__()
        self.source = source

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """All documents; bad records and those passed over are counted by reason."""
        yield from data or ()
        reader, origin = build_reader(self.source), origin_of(self.source)
        files = list(find_files(self.source.paths, self.source.name).items())
        for name, path in files[rank::world_size]:
            for parsed in read(reader, Path(path), name, origin):
                if isinstance(parsed, Document):
                    self.stat_update("documents")
                    yield _block(parsed)
                else:
                    self.stat_update(parsed.reason)


@final
class StageBlock(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """A stage of ``wmtp.corpus.stages``."""

    type = "🔻 - FILTER"

    def __init__(self, stage: CountingStage) -> None:
        """Wrap nothing, change nothing: the stage is called as it is."""
        self.name = stage.name
        super().__init__()
        self.stage = stage

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Block]:
        """Those that are kept; those dropped are counted by reason, changes by name."""
        for block in data:
            result, changes = self.stage.counted(_document(block))
            for name, count in changes.items():
                self.stat_update(name, value=count)
            if isinstance(result, Dropped):
                self.stat_update(result.reason)
                continue
            self.stat_update("kept")
            block.text = result.text
            yield block


def _block(document: Document) -> Block:
    ours: dict[str, Any] = {
        "source": document.source,
        "license": document.license,
        "place": str(document.place),
    }
    return Block(text=document.text, id=document.id, metadata={**document.meta, **ours})


def _document(block: Block) -> Document:
    """A document of ours; one of another reader has what it has."""
    source, license, place = (str(block.metadata.get(key, "")) for key in _OURS)
    file, _, record = place.rpartition(":")
    number = int(record) if record.isdecimal() else 0
    return Document(str(block.id), block.text, source, license, Place(file, number), {})
