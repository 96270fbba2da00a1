"""Duplicates in a whole corpus: what tells that two documents are alike, and who repeats whom."""

from wmtp.corpus.duplicates.outcome import Duplicates, DuplicateSettings
from wmtp.corpus.duplicates.search import find_duplicates
from wmtp.corpus.duplicates.signatures import Signatures, SignatureShape, comparable, sign
from wmtp.corpus.duplicates.splitting import SplitSettings, in_validation
from wmtp.corpus.duplicates.texts import StoredTexts, write_texts

__all__ = [
    "DuplicateSettings",
    "Duplicates",
    "SignatureShape",
    "Signatures",
    "SplitSettings",
    "StoredTexts",
    "comparable",
    "find_duplicates",
    "in_validation",
    "sign",
    "write_texts",
]
