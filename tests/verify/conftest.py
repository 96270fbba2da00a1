import shutil

import pytest

from wmtp.verify.llama_cpp_engine import Engine, default_folder, find_engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The real llama.cpp, which ``make test`` installs where npm is."""
    for program in ("c++", "git"):
        if shutil.which(program) is None:
            pytest.skip(f"llama.cpp cannot be asked without {program}")
    if not (default_folder() / "node_modules").is_dir():
        pytest.skip(f"there is no llama.cpp in '{default_folder()}' (make test installs it by npm)")
    return find_engine()
