import shutil
from pathlib import Path

import pytest

from wmtp.errors import ConfigError
from wmtp.verify.llama_cpp_engine import NPM_VERSION, find_engine

LIBRARIES = ("libllama-common.so", "libllama.v0.5.0.so", "libggml.v0.5.0.so", "libggml-base.so")


def test_a_missing_engine_is_told_with_the_command_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMTP_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=f"npm install --prefix {tmp_path}/llama.cpp") as error:
        find_engine()
    assert f"node-llama-cpp@{NPM_VERSION}" in str(error.value)
    assert "\n" not in str(error.value)


def test_libraries_without_headers_are_not_enough(tmp_path: Path) -> None:
    folder = tmp_path / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
    folder.mkdir(parents=True)
    for name in LIBRARIES:
        (folder / name).write_text("")
    with pytest.raises(ConfigError, match="has llama.cpp's libraries but not its headers"):
        find_engine(tmp_path)


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here")
def test_headers_that_do_not_fit_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMTP_CACHE", str(tmp_path / "cache"))
    for folder in ("include", "build/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in LIBRARIES:
        (tmp_path / "build/bin" / name).write_text("")
    (tmp_path / "include/llama.h").write_text("")
    with pytest.raises(ConfigError, match="could not be compiled: .*common.h") as error:
        find_engine(tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "cache/llama_cpp_driver").iterdir()] == []
