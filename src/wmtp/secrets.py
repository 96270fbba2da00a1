"""Keep passwords and tokens out of the console, the run folder, trackers and error texts."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"

_SECRET_WORD = "TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY"
_SECRET_NAME = re.compile(rf"(?:^|[_.-])(?:{_SECRET_WORD})(?:[_.-]|$)", re.IGNORECASE)
_PLACE_NAME = re.compile(r"_(?:PATH|FILE|DIR|HOME)$", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)[^\s/'\"]+@")  # up to the last @: a password may have one
_AUTHORIZATION = re.compile(r"(authorization\W{1,5}(?:basic|bearer)\s+)[^\s'\"]+", re.IGNORECASE)
_QUERY_VALUE = re.compile(
    r"([?&][\w.-]*(?:token|secret|password|signature|credential|key)[\w.-]*=)[^&\s'\"]+",
    re.IGNORECASE,
)
# shorter values ("true", "1") are hardly secrets, and hiding them would blank ordinary text
_SHORTEST_SECRET = 8


def without_secrets(text: str) -> str:
    """Replace what must not be shown: logins in URIs, signed queries, secret variables' values.

    Example:
        >>> without_secrets("cannot reach https://me:hunter2@mlflow.example/api?token=abc")
        'cannot reach https://***@mlflow.example/api?token=***'
    """
    for secret in _secret_values():
        text = text.replace(secret, HIDDEN)
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    return _QUERY_VALUE.sub(rf"\1{HIDDEN}", text)


def redacted(value: Any, key: str = "") -> Any:
    """Copy of a nested config in which every string is free of secrets.

    A value under a key such as ``token`` or ``password`` is hidden whole.

    Example:
        >>> redacted({"s3": {"secret": "abc"}, "uri": "http://a:b@host", "max_new_tokens": 5})
        {'s3': {'secret': '***'}, 'uri': 'http://***@host', 'max_new_tokens': 5}
    """
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    if value and _SECRET_NAME.search(key):
        return HIDDEN
    return without_secrets(value) if isinstance(value, str) else value


def _secret_values() -> list[str]:
    """Values of the environment's secret variables, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET
        and _SECRET_NAME.search(name)
        and not _PLACE_NAME.search(name)
    }
    forms = {form for value in values for form in _forms_of(value)}
    return sorted(forms, key=len, reverse=True)


def _forms_of(value: str) -> tuple[str, ...]:
    """How a text may stand in a message: as it is, as Python or JSON show it, or in a URI."""
    return value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")


def one_line(error: Exception, *, stop: bool = True) -> str:
    """What somebody else's library said, short and without secrets.

    Args:
        error: whose text may have any length, and may be empty.
        stop: False leaves out full stops at its end, for a sentence that has its own.

    Example:
        >>> one_line(OSError("no   route."), stop=False)
        'no route'
    """
    text = " ".join(without_secrets(str(error)).split())
    text = (text if stop else text.rstrip(".")) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
