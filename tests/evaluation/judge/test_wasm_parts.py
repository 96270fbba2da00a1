"""The parts of the WebAssembly backend that need no WebAssembly."""

import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wmtp.evaluation.sandbox.inside.wasm import files
from wmtp.evaluation.sandbox.inside.wasm.compiled import machine_code
from wmtp.evaluation.sandbox.inside.wasm.files import File, Folder, RefusedError, Tree
from wmtp.evaluation.sandbox.inside.wasm.module import STACK, with_stack_exported
from wmtp.evaluation.sandbox.inside.wasm.wasi import ROOT, Wasi

# files -------------------------------------------------------------------------------------------


@pytest.fixture
def tree() -> Tree:
    made = Tree()
    made.most_bytes, made.most_files = 100, 3
    made.root.entries["work"] = Folder(made.root, writable=True)
    made.root.entries["read"] = File(b"only", read_only=True)
    return made


def refused(act: Callable[[], object]) -> int:
    with pytest.raises(RefusedError) as error:
        act()
    return error.value.number


def test_paths_do_not_lead_out_of_the_tree(tree: Tree) -> None:
    work = tree.find(tree.root, "work")
    assert isinstance(work, Folder)
    assert tree.find(work, "../../../..") is tree.root
    assert tree.find(work, "/../work/./../work/") is work
    assert refused(lambda: tree.find(work, "../etc/passwd")) == files.NO_ENTRY
    assert refused(lambda: tree.find(tree.root, "read/")) == files.NOT_A_FOLDER
    assert refused(lambda: tree.find(tree.root, "read/x")) == files.NOT_A_FOLDER
    assert refused(lambda: tree.find(tree.root, "x" * 256)) == files.NAME_TOO_LONG


def test_only_the_programs_folder_can_be_changed(tree: Tree) -> None:
    assert refused(lambda: tree.make_file(tree.root, "new")) == files.READ_ONLY
    assert refused(lambda: tree.remove(tree.root, "read", folders=False)) == files.READ_ONLY
    assert refused(lambda: tree.remove(tree.root, "work", folders=True)) == files.READ_ONLY
    assert (
        refused(lambda: tree.rename(tree.root, "read", tree.root, "work/mine")) == files.READ_ONLY
    )
    tree.make_file(tree.root, "work/new")
    assert refused(lambda: tree.make_file(tree.root, "work/new")) == files.EXISTS


def test_files_are_counted_until_they_are_gone(tree: Tree) -> None:
    for name in "abc":
        tree.make_file(tree.root, f"work/{name}")
    assert refused(lambda: tree.make_file(tree.root, "work/d")) == files.NO_SPACE
    assert refused(lambda: tree.make_folder(tree.root, "work/d")) == files.NO_SPACE
    tree.remove(tree.root, "work/a", folders=False)
    tree.make_folder(tree.root, "work/d")


def test_bytes_count_while_a_file_without_a_name_is_open(tree: Tree) -> None:
    file = tree.make_file(tree.root, "work/a")
    file.opened = 1
    tree.write(file, 0, bytes(80))
    tree.remove(tree.root, "work/a", folders=False)
    other = tree.make_file(tree.root, "work/b")
    assert refused(lambda: tree.write(other, 0, bytes(21))) == files.NO_SPACE
    assert refused(lambda: tree.resize(other, 1 << 60)) == files.NO_SPACE
    assert refused(lambda: tree.write(other, 1 << 60, b"x")) == files.NO_SPACE
    file.opened = 0
    tree.let_go(file)
    tree.write(other, 0, bytes(100))


def test_a_renamed_file_takes_the_place_and_a_folder_never_its_own(tree: Tree) -> None:
    first, second = tree.make_file(tree.root, "work/a"), tree.make_file(tree.root, "work/b")
    tree.write(first, 0, b"first")
    tree.write(second, 0, bytes(90))
    tree.rename(tree.root, "work/a", tree.root, "work/b")
    assert tree.find(tree.root, "work/b") is first
    tree.write(first, 0, bytes(100))  # what the other held is free again
    tree.make_folder(tree.root, "work/d")
    tree.make_folder(tree.root, "work/d/e")
    assert (
        refused(lambda: tree.rename(tree.root, "work/d", tree.root, "work/d/e/f")) == files.INVALID
    )
    assert refused(lambda: tree.remove(tree.root, "work/d", folders=True)) == files.NOT_EMPTY


# functions ----------------------------------------------------------------------------------------


class Bytes:
    """A memory as wasmtime's: unchecked beyond its own bounds, like the real one's pointer."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)

    def data_len(self, caller: object) -> int:
        return len(self.content)

    def read(self, caller: object, start: int, stop: int) -> bytearray:
        assert 0 <= start <= stop <= len(self.content), "read outside of the memory"
        return self.content[start:stop]

    def write(self, caller: object, value: bytearray, start: int) -> None:
        assert 0 <= start <= start + len(value) <= len(self.content), "written outside"
        self.content[start : start + len(value)] = value


ARGUMENTS = {
    "args_get": 2, "args_sizes_get": 2, "environ_get": 2, "environ_sizes_get": 2,
    "clock_res_get": 2, "clock_time_get": 3, "fd_advise": 4, "fd_allocate": 3, "fd_close": 1,
    "fd_datasync": 1, "fd_fdstat_get": 2, "fd_fdstat_set_flags": 2, "fd_filestat_get": 2,
    "fd_filestat_set_size": 2, "fd_filestat_set_times": 4, "fd_pread": 5, "fd_prestat_get": 2,
    "fd_prestat_dir_name": 3, "fd_pwrite": 5, "fd_read": 4, "fd_readdir": 5, "fd_renumber": 2,
    "fd_seek": 4, "fd_sync": 1, "fd_tell": 2, "fd_write": 4, "path_create_directory": 3,
    "path_filestat_get": 5, "path_filestat_set_times": 7, "path_link": 7, "path_open": 9,
    "path_readlink": 6, "path_remove_directory": 3, "path_rename": 6, "path_symlink": 5,
    "path_unlink_file": 3, "poll_oneoff": 4, "sched_yield": 0, "random_get": 2, "sock_accept": 3,
    "sock_recv": 6, "sock_send": 5, "sock_shutdown": 2, "fd_fdstat_set_rights": 3, "proc_raise": 1,
}  # fmt: skip
NUMBERS = (0, 1, 2, ROOT, 4, 5, 8, 24, 48, 255, 4000, 4096, 65_535, 65_536, 2**31, 2**32 - 1)


def test_no_numbers_lead_out_of_the_memory_or_raise_anything(tree: Tree) -> None:
    chance = random.Random(7)
    wasi = Wasi(tree, ["A=1"], ["python"], lambda: None)
    wasi.memory = Bytes(1 << 16)
    functions = wasi.functions()
    assert functions.keys() - ARGUMENTS.keys() == {"proc_exit"}
    before = sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else []
    answers = set()
    for turn in range(6000):
        if turn % 50 == 0:
            wasi.memory.content[:] = chance.randbytes(1 << 16) if turn % 100 else bytes(1 << 16)
            wasi.memory.content[4000:4010] = b"work/a/../"
            tree.most_bytes = tree.most_files = 1000
        name = chance.choice(list(ARGUMENTS))
        if name == "poll_oneoff":
            wasi.memory.content[:] = bytes(1 << 16)  # clocks that have run out: it may not wait
        numbers = [chance.choice(NUMBERS) for _ in range(ARGUMENTS[name])]
        if turn % 20 == 1:
            wasi.memory.content[4000:4010] = b"work/a/../"
            name, numbers = "path_open", [ROOT, 0, 4000, 6, 1, 66, 0, 0, 8]
        if name == "fd_close" and numbers[0] == ROOT:
            continue
        answer = functions[name](None, *numbers)
        assert isinstance(answer, int), name
        assert 0 <= answer < 77, name
        answers.add((name, answer == 0))
    assert sum(right for _, right in answers) > 20, "hardly anything was reached"
    assert sum(not right for _, right in answers) > 30
    if before:
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_write_of_gigabytes_takes_a_part(tree: Tree) -> None:
    """One buffer of the whole memory, named a thousand times."""
    tree.most_bytes, tree.most_files = 1 << 30, 10
    wasi = Wasi(tree, [], [], lambda: None)
    wasi.memory = Bytes(1 << 16)
    functions = wasi.functions()
    wasi.memory.content[:6] = b"work/a"
    rights = (1 << 6) | (1 << 1)
    assert functions["path_open"](None, ROOT, 0, 0, 6, 1, rights, 0, 0, 16) == 0
    (number,) = struct.unpack_from("<I", wasi.memory.content, 16)
    wasi.memory.content[1024 : 1024 + 8 * 1000] = struct.pack("<II", 0, 1 << 16) * 1000
    assert functions["fd_write"](None, number, 1024, 1000, 16) == 0
    assert struct.unpack_from("<I", wasi.memory.content, 16) == (1 << 20,)
    assert functions["fd_write"](None, number, 1024, 1025, 16) == files.INVALID


# machine code -------------------------------------------------------------------------------------


def test_machine_code_is_made_once_and_again_for_other_versions(tmp_path: Path) -> None:
    cache = str(tmp_path / "below" / "wasm")
    assert machine_code(b"a", "1", cache, lambda: b"first") == b"first"
    assert machine_code(b"a", "1", cache, lambda: b"second") == b"first"
    assert machine_code(b"a", "2", cache, lambda: b"newer") == b"newer"
    assert machine_code(b"b", "1", cache, lambda: b"other") == b"other"
    assert oct(os.stat(cache).st_mode & 0o777) == "0o700"


@pytest.mark.parametrize("how", ["folder", "file", "link to a folder", "link to a file", "changed"])
def test_machine_code_that_others_could_have_written_is_not_run(tmp_path: Path, how: str) -> None:
    cache = tmp_path / "wasm"
    assert machine_code(b"a", "1", str(cache), lambda: b"first") == b"first"
    (kept,) = cache.iterdir()
    if how == "folder":
        cache.chmod(0o777)
    elif how == "file":
        kept.chmod(0o666)
    elif how == "link to a folder":
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")
    elif how == "link to a file":
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    else:
        kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    assert machine_code(b"a", "1", str(cache), lambda: b"anew") == b"anew"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_machine_code_of_another_user_is_not_run(tmp_path: Path) -> None:
    cache = tmp_path / "wasm"
    machine_code(b"a", "1", str(cache), lambda: b"first")
    os.chown(cache, 65534, 65534)
    assert machine_code(b"a", "1", str(cache), lambda: b"anew") == b"anew"


def test_a_compiler_that_fails_is_told(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ValueError

    with pytest.raises(OSError, match="could not be compiled"):
        machine_code(b"a", "1", str(tmp_path / "wasm"), fail)


# the module ---------------------------------------------------------------------------------------


def section(kind: int, content: bytes) -> bytes:
    return bytes((kind, len(content))) + content


GLOBALS = section(6, b"\x01\x7f\x01\x41\x80\x08\x0b")  # one i32, changeable, 1024
EXPORTS = section(7, b"\x01\x01m\x02\x00")


def test_the_stack_is_exported_and_names_are_left_out() -> None:
    header = b"\0asm\1\0\0\0"
    made = with_stack_exported(header + GLOBALS + EXPORTS + section(0, b"\x04nameabc"))
    added = bytes((len(STACK),)) + STACK.encode() + b"\x03\x00"
    assert made == header + GLOBALS + section(7, b"\x02\x01m\x02\x00" + added)


def test_the_real_engine_reads_what_was_made() -> None:
    wasmtime: Any = pytest.importorskip(
        "wasmtime", reason="needs the extra: pip install 'wmtp[wasm]'"
    )
    text = '(module (global (mut i32) (i32.const 1024)) (memory 1) (export "m" (memory 0)))'
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, with_stack_exported(bytes(wasmtime.wat2wasm(text))))
    assert [one.name for one in module.exports] == ["m", STACK]
    store = wasmtime.Store(engine)
    assert wasmtime.Instance(store, module, []).exports(store)[STACK].value(store) == 1024


@pytest.mark.parametrize(
    "source",
    [
        b"", b"MZ", b"\0asm\1\0\0\0", b"\0asm\1\0\0\0" + EXPORTS, b"\0asm\1\0\0\0" + GLOBALS,
        b"\0asm\1\0\0\0" + GLOBALS + EXPORTS[:-1], b"\0asm\1\0\0\0\x06\xff\xff\xff\xff\xff\xff",
        b"\0asm\1\0\0\0" + section(6, b"\x01\x7e\x01\x42\x00\x0b") + EXPORTS,
    ],
)  # fmt: skip
def test_what_is_no_such_module_is_refused(source: bytes) -> None:
    with pytest.raises(ValueError, match=r"module|number|stack"):
        with_stack_exported(source)
