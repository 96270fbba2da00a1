from collections.abc import Iterator

import pytest

from wmtp.errors import SandboxError
from wmtp.evaluation import Judge


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    """One sandbox for all tests of this process."""
    try:
        one = Judge()
    except SandboxError as error:
        pytest.skip(f"programs cannot be confined here: {error}")
    with one:
        yield one
