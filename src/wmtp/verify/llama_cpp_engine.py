"""The real llama.cpp: where it is, and a small program that asks it.

llama.cpp's drafting driver is C++ and not part of its C interface, so the program that calls it is
compiled once against the headers of the very version whose libraries are used, and kept.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import CheckpointError, ConfigError

NPM_VERSION = "3.22.1"
"""Of the two packages; they hold llama.cpp v0.5.0."""

_DRIVER = Path(__file__).with_name("llama_cpp_driver.cpp")
_LIBRARY = re.compile(r"lib(llama-common|llama|ggml|ggml-base)(\.v?\d[\d.]*)?\.(so|dylib)")
_LIBRARIES = ("llama-common", "llama", "ggml", "ggml-base")
_INCLUDES = ("include", "ggml/include", "common", "src", "vendor")
_RUN_SECONDS = 3600.0
_COMPILE_SECONDS = 600.0


@dataclass(frozen=True)
class Prompt:
    """A text that the engine is to continue.

    Attributes:
        ids: at least two.
        new_tokens: how many it adds.
    """

    ids: Sequence[int]
    new_tokens: int


@dataclass(frozen=True)
class Round:
    """One draft of the engine.

    Attributes:
        prompt: which of the prompts.
        depth: how many tokens were drafted.
        known: how many tokens of the sequence were certain then.
        drafts: ``depth`` ids.
        logits_V: of the last draft.
    """

    prompt: int
    depth: int
    known: int
    drafts: tuple[int, ...]
    logits_V: NDArray[np.float32]


@dataclass
class Answers:
    """All that the engine found.

    Attributes:
        ids: of each text.
        trunk: of each prompt, logits ``[R, V]`` at its last ``R`` positions.
        rounds: every full draft, at every depth.
        sequences: prompt and new tokens, by prompt and most drafts a round.
        counts: for each depth how often a draft was looked at and taken, by the same.
    """

    ids: dict[int, list[int]] = field(default_factory=dict)
    trunk: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    sequences: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    counts: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """A compiled driver, and the folder with llama.cpp's libraries."""

    driver: Path
    libraries: Path

    def ask(
        self,
        file: Path,
        texts: Sequence[str],
        prompts: Sequence[Prompt],
        *,
        depths: int,
        folder: Path,
    ) -> Answers:
        """Tokenize texts and continue prompts with a model.

        Args:
            file: the GGUF file.
            depths: most tokens that its heads draft; 0 for the trunk alone.
            folder: for the logits, which the answers go on reading from there.

        Raises:
            CheckpointError: the engine failed, or told less than it was asked for.
        """
        request, logits = folder / "request", folder / "logits"
        request.write_bytes(_request(texts, prompts, depths))
        command = [self.driver, file.resolve(), self.libraries, request, logits]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=_RUN_SECONDS, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired as error:
            raise CheckpointError(
                f"llama.cpp did not finish with '{file}' within {_RUN_SECONDS:.0f} seconds."
            ) from error
        lines = done.stdout.decode("utf-8", errors="replace").splitlines()
        if done.returncode != 0 or lines[-1:] != ["done"]:
            raise CheckpointError(
                f"llama.cpp {_ended(done.returncode)} with '{file}': "
                f"{_last_line(done.stderr) or (lines or ['it said nothing'])[-1][:200]}"
            )
        try:
            answers = _parse(lines, logits)
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"llama.cpp's answers about '{file}' are not whole.") from error
        wanted = {(p, d) for p in range(len(prompts)) for d in range(min(1, depths), depths + 1)}
        if (
            len(answers.ids) != len(texts)
            or len(answers.trunk) != len(prompts)
            or answers.sequences.keys() != wanted
            or answers.counts.keys() != wanted
        ):
            raise CheckpointError(f"llama.cpp told less about '{file}' than it was asked for.")
        return answers


def find_engine(llama_cpp: Path | None = None) -> Engine:
    """Find llama.cpp and compile the driver, unless that was done before.

    Args:
        llama_cpp: a folder into which npm installed the two packages, or a source folder of
            llama.cpp with shared libraries built in it; None for the folder where
            ``install_command`` puts the former.

    Raises:
        ConfigError: there is none, or the driver cannot be compiled; says what to do.
    """
    root = default_folder() if llama_cpp is None else llama_cpp.resolve()
    libraries = _libraries(root)
    if libraries is None:
        raise ConfigError(
            f"There is no llama.cpp in '{root}'. Install it with: {install_command(root)} - or "
            "give the folder of a llama.cpp build with shared libraries (--llama-cpp DIR)."
        )
    key = hashlib.sha256(_DRIVER.read_bytes())
    for library in libraries:
        status = library.stat()
        key.update(f"{library}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    driver = _cache() / "llama_cpp_driver" / key.hexdigest()[:16]
    if not driver.is_file():
        _compile(root, libraries, driver)
    return Engine(driver, libraries[0].parent)


def default_folder() -> Path:
    """Where llama.cpp is looked for if nobody says where it is."""
    return _cache() / "llama.cpp"


def install_command(folder: Path) -> str:
    """What to type to get llama.cpp, libraries and headers, from npm."""
    system = "mac-arm64-metal" if os.uname().sysname == "Darwin" else _linux_package()
    return (
        f"npm install --prefix {folder} --ignore-scripts --omit=optional "
        f"node-llama-cpp@{NPM_VERSION} @node-llama-cpp/{system}@{NPM_VERSION}"
    )


def _linux_package() -> str:
    return "linux-arm64" if os.uname().machine in ("aarch64", "arm64") else "linux-x64"


def _cache() -> Path:
    return Path(os.environ.get("WMTP_CACHE") or Path.home() / ".cache" / "wmtp").resolve()


def _libraries(root: Path) -> tuple[Path, ...] | None:
    """The libraries to link, in the order of ``_LIBRARIES``; all from one folder."""
    folders = [*root.glob("node_modules/@node-llama-cpp/*/bins/*"), root / "build/bin"]
    for folder in folders:
        found: dict[str, Path] = {}
        for path in sorted(folder.glob("lib*"), key=lambda path: (len(path.name), path.name)):
            match = _LIBRARY.fullmatch(path.name)
            if match:
                found.setdefault(match[1], path)
        if all(name in found for name in _LIBRARIES):
            return tuple(found[name] for name in _LIBRARIES)
    return None


def _compile(root: Path, libraries: Sequence[Path], driver: Path) -> None:
    driver.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=driver.parent) as scratch:
        sources = _sources(root, Path(scratch) / "sources")
        built = Path(scratch) / "driver"
        includes = [f"-I{sources / name}" for name in _INCLUDES]
        _build(
            [
                *("c++", "-std=c++17", "-O1", *includes, str(_DRIVER)),
                *map(str, libraries),
                *("-Xlinker", "-rpath", "-Xlinker", str(libraries[0].parent), "-o", str(built)),
            ],
            "The program that asks llama.cpp could not be compiled",
        )
        os.replace(built, driver)  # two that compile at once leave one whole file


def _sources(root: Path, unpacked: Path) -> Path:
    """A folder with llama.cpp's headers."""
    if (root / "include" / "llama.h").is_file():
        return root
    bundle = root / "node_modules/node-llama-cpp/llama/gitRelease.bundle"
    if not bundle.is_file():
        raise ConfigError(
            f"'{root}' has llama.cpp's libraries but not its headers. Install both with: "
            f"{install_command(root)}"
        )
    _build(
        ["git", "-c", "advice.detachedHead=false", "clone", "-q", str(bundle), str(unpacked)],
        "llama.cpp's headers could not be unpacked",
    )
    return unpacked


def _build(command: list[str], failure: str) -> None:
    if shutil.which(command[0]) is None:
        raise ConfigError(f"{failure}: there is no {command[0]} on this machine. Install it.")
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{failure} within {_COMPILE_SECONDS:.0f} seconds.") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", errors="replace").splitlines()
        fault = next((line for line in said if "error" in line), (said or ["no reason given"])[-1])
        raise ConfigError(f"{failure}: {fault.strip()[:300]}")


def _request(texts: Sequence[str], prompts: Sequence[Prompt], depths: int) -> bytes:
    context = 256 * (1 + max((len(p.ids) + p.new_tokens for p in prompts), default=0) // 256)
    parts = [f"depths {depths}\ncontext {context}\n".encode()]
    for text in texts:
        encoded = text.encode()
        parts.append(b"text %d\n%s\n" % (len(encoded), encoded))
    for prompt in prompts:
        ids = " ".join(map(str, prompt.ids))
        parts.append(f"prompt {prompt.new_tokens} {len(prompt.ids)} {ids}\n".encode())
    return b"".join(parts)


def _parse(lines: Sequence[str], logits: Path) -> Answers:
    """Read the driver's lines; see ``llama_cpp_driver.cpp``.

    Raises:
        ValueError: they are not what it writes, or the logits are not as many.
    """
    answers = Answers()
    head, *rest = lines
    vocabulary = int(head.removeprefix("model ").split()[0])
    rows_NV: NDArray[np.float32] = np.empty((0, vocabulary), np.float32)
    if logits.stat().st_size:
        rows_NV = np.memmap(logits, dtype=np.float32, mode="r").reshape(-1, vocabulary)
    row = 0
    for line in rest[:-1]:
        word, *texts = line.split()
        numbers = [int(text) for text in texts]
        if word == "ids":
            answers.ids[numbers[0]] = numbers[1:]
        elif word == "trunk":
            prompt, count = numbers
            answers.trunk[prompt] = rows_NV[row : row + count]
            row += count
        elif word == "round":
            prompt, depth, known, *drafts = numbers
            one = Round(prompt, depth, known, tuple(drafts), rows_NV[row])
            answers.rounds.append(one)
            row += 1
        elif word == "sequence":
            answers.sequences[numbers[0], numbers[1]] = numbers[2:]
        elif word == "counts":
            pairs = list(zip(numbers[2::2], numbers[3::2], strict=True))
            answers.counts[numbers[0], numbers[1]] = pairs
        else:
            raise ValueError(f"unknown word {word}")
    if row != len(rows_NV):
        raise ValueError(f"{len(rows_NV)} rows of logits, {row} of them named")
    return answers


def _ended(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by signal {-returncode}"
    return "failed" if returncode else "stopped early"


def _last_line(said: bytes) -> str:
    lines = [line for line in said.decode("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""
