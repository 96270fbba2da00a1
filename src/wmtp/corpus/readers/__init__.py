"""Readers of raw formats: a file becomes documents, and records that are none."""

from wmtp.corpus.readers.reader import (
    Origin,
    Parsed,
    PassedOver,
    RawRecord,
    Reader,
    Start,
)

__all__ = ["Origin", "Parsed", "PassedOver", "RawRecord", "Reader", "Start"]
