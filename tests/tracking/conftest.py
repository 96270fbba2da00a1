import pytest


@pytest.fixture(scope="session", autouse=True)
def mlflow_is_imported() -> None:
    """It takes seconds, on a busy machine more than the trackers under test are given to answer."""
    import mlflow.tracking  # noqa: F401
