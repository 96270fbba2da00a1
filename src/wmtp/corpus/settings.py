"""What may be asked for in a list of sources: ``wmtp data prepare --sources FILE``."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BeforeValidator, Field, create_model, model_validator

from wmtp.config_files import read_yaml_file
from wmtp.corpus.duplicates import DuplicateSettings, SplitSettings
from wmtp.corpus.stages import (
    Boilerplate,
    Language,
    LinkList,
    PrivateData,
    Repetition,
    Shape,
    WrongEncoding,
)
from wmtp.errors import ConfigError
from wmtp.sections import Section, as_tuple, check_section

Format = Literal[
    "wikipedia", "namuwiki", "json", "nikl", "warc", "wet", "text", "jsonl", "csv", "parquet"
]
Layout = Literal[
    "daily_conversation",
    "dialogue_summary",
    "document_summary",
    "news",
    "web_corpus",
    "web_corpus_labels",
]

LICENSES: Final = {"wikipedia": "CC-BY-SA-4.0", "namuwiki": "CC-BY-NC-SA-2.0-KR"}
"""Of sources that have one license alone."""

OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "wikipedia": (),
    "namuwiki": (),
    "json": ("layout", "text", "join"),
    "nikl": (),
    "warc": ("main_content",),
    "wet": (),
    "text": ("split", "encoding"),
    "jsonl": ("text", "join"),
    "csv": ("text", "header", "delimiter", "encoding"),
    "parquet": ("text",),
}
"""The keys of a source that its format has, beside those that all have."""

_ALL_HAVE: Final = frozenset(("name", "paths", "format", "license"))
_LONGEST_NAME: Final = 64

Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
S = TypeVar("S")


class SourceSection(Section):
    """Files of one format, one origin and one license."""

    name: str = Field(description="in reports and in every document; letters, digits, . _ -")
    paths: Names = Field(min_length=1, description="files, or patterns such as dumps/**/*.json")
    format: Format
    license: str = Field("", description="carried along with every document")
    layout: Layout | None = Field(None, description="json: a path that is known by a name")
    text: str | None = Field(
        None, description="path or column of the text, as documents[].text[][].sentence"
    )
    join: str = Field("\n", description="json, jsonl: stands between the texts of a record")
    split: Literal["file", "lines", "paragraphs"] = Field(
        "file", description="text: what is a document"
    )
    encoding: Literal["utf-8", "cp949"] = Field("utf-8", description="text, csv: of the bytes")
    header: bool = Field(True, description="csv: the first row names the columns")
    delimiter: str = Field(",", min_length=1, max_length=1, description="csv: between fields")
    main_content: bool = Field(True, description="warc: without navigation, footers and the like")

    @model_validator(mode="after")
    def _fits(self) -> "SourceSection":
        faults = [
            f"{key} is not for format {self.format}"
            + (f", which has {', '.join(OPTIONS[self.format])}" if OPTIONS[self.format] else "")
            for key in sorted(self.model_fields_set - _ALL_HAVE - set(OPTIONS[self.format]))
        ]
        plain = self.name.replace(".", "").replace("_", "").replace("-", "")
        if not (plain.isalnum() and plain.isascii()) or len(self.name) > _LONGEST_NAME:
            faults.append(
                f"name is {self.name[:80]!r}: use letters, digits and . _ -, at most "
                f"{_LONGEST_NAME}"
            )
        if not self.license and self.format not in LICENSES:
            faults.append("license is missing: every document carries it to the end")
        if self.format == "json" and (self.layout is None) == (self.text is None):
            faults.append("text or layout is needed, one of them: where the text lies")
        if self.format == "csv" and not self.header and not (self.text or "0").isdecimal():
            faults.append(f"text is {self.text!r}: without header it is the number of a column")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def effective_license(self) -> str:
        """The license that is given, or the one that the format has."""
        return self.license or LICENSES[self.format]


def _section_of_stage(stage: type[Any]) -> type[Section]:
    """A section with the fields of a stage, and one that switches it off."""
    hints = typing.get_type_hints(stage)
    fields: dict[str, Any] = {"enabled": (bool, Field(True, description="false leaves it out"))}
    for field in dataclasses.fields(stage):
        kind = hints[field.name]
        if kind in (int, float):
            is_share = kind is float and field.name.endswith(("share", "probability"))
            kind = Annotated[kind, Field(ge=0, le=1 if is_share else None)]
        elif typing.get_origin(kind) is tuple:
            kind = Annotated[kind, BeforeValidator(as_tuple)]
        fields[field.name] = (kind, field.default)
    return create_model(stage.__name__, __base__=Section, __doc__=stage.__doc__, **fields)


STAGES: Final[dict[str, type[Any]]] = {
    "wrong_encoding": WrongEncoding,
    "shape": Shape,
    "links": LinkList,
    "boilerplate": Boilerplate,
    "repetition": Repetition,
    "language": Language,
    "private_data": PrivateData,
}
"""What may be set, by the key of its section; normalization is always done and has no settings."""

SECTIONS: Final = {name: _section_of_stage(stage) for name, stage in STAGES.items()}

_FIELDS: Final[dict[str, Any]] = {name: (section, section()) for name, section in SECTIONS.items()}
StagesSection = create_model(
    "StagesSection", __base__=Section, __doc__="What a document goes through.", **_FIELDS
)


class DuplicatesSection(Section):
    """What repeats what."""

    threshold: float = Field(
        DuplicateSettings().threshold, gt=0, le=1, description="Jaccard, of character 5-grams"
    )
    group_threshold: float = Field(
        DuplicateSettings().group_threshold,
        gt=0,
        le=1,
        description="from here on two documents are on one side of the split",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "DuplicatesSection":
        if self.group_threshold > self.threshold:
            raise ValueError("group_threshold is above threshold: set it lower")
        return self


class ValidationSection(Section):
    """What is held out."""

    share: float = Field(
        SplitSettings().validation_share, ge=0, le=0.5, description="of groups of documents"
    )
    largest_group: int = Field(
        SplitSettings().largest_group, ge=1, le=255, description="larger ones are for training"
    )


class CorpusSettings(Section):
    """A corpus: where it comes from, and what it goes through."""

    sources: Annotated[tuple[SourceSection, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    decontaminate: Names = Field((), description="evaluation files: jsonl, json, csv or text")
    stages: StagesSection = StagesSection()
    duplicates: DuplicatesSection = DuplicatesSection()
    validation: ValidationSection = ValidationSection()
    seed: int = Field(0, ge=0, lt=2**63, description="of the choice for validation")
    file_megabytes: int = Field(256, ge=1, le=4096, description="of text in a file, before gzip")

    @model_validator(mode="after")
    def _names_differ(self) -> "CorpusSettings":
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sources: the name {twice[0]} is given twice")
        return self


def load_corpus_settings(path: Path) -> CorpusSettings:
    """Read and check a list of sources.

    Raises:
        ConfigError: anything is wrong; the message has one line per fault.
    """
    document = read_yaml_file(str(path))
    faults = list(document.errors)
    settings = check_section(CorpusSettings, document, faults)
    if settings is None or faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)) or f"{path}: nothing can be read.")
    return settings
