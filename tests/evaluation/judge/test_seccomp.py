"""The filter of system calls, run by an interpreter of BPF, for both processors."""

import re
import struct
from pathlib import Path

import pytest

from wmtp.evaluation.sandbox.inside.seccomp import (
    AARCH64,
    ALLOWED,
    X86_64,
    Architecture,
    filter_program,
)

ALLOW, KILL, NOT_PERMITTED, NOT_IMPLEMENTED = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
OWN_PID = 2
PROCESSORS = {"x86_64": X86_64, "aarch64": AARCH64}
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+) (\d+)"),
    "aarch64": ("/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+) (\d+)"),
}


def verdict(machine: str, name_or_number: str | int, *arguments: int, audit: int = 0) -> int:
    """What the kernel would do with a call."""
    architecture = PROCESSORS[machine]
    number = (
        name_or_number if isinstance(name_or_number, int) else architecture.calls[name_or_number]
    )
    padded = [*arguments, *[0] * (6 - len(arguments))]
    call = struct.pack("=iIQ6Q", number, audit or architecture.audit, 0, *padded)
    program = list(struct.iter_unpack("=HBBI", filter_program(machine, OWN_PID)))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", call, value)
        elif code == 0x06:
            return value
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", PROCESSORS)
def test_what_python_needs_is_allowed_and_all_else_is_not(machine: str) -> None:
    calls = PROCESSORS[machine].calls
    known = {calls[name] for name in ALLOWED if name in calls}
    ruled = {number for name, number in calls.items() if name not in ALLOWED}
    for number in range(470):
        if number not in ruled:
            assert verdict(machine, number) == (ALLOW if number in known else NOT_PERMITTED)


@pytest.mark.parametrize("machine", PROCESSORS)
def test_rules_look_at_arguments(machine: str) -> None:
    def allowed(name: str, *arguments: int) -> bool:
        return verdict(machine, name, *arguments) == ALLOW

    assert allowed("clone", 0x3D0F00)  # a thread, as glibc starts it
    assert not allowed("clone", 0x1200011)  # fork
    assert verdict(machine, "clone3") == NOT_IMPLEMENTED
    assert allowed("kill", OWN_PID, 9)
    for other in (0, 1, 3, 2**32 - 1, 2**64 - 1):
        assert not allowed("kill", other, 9)
        assert not allowed("tgkill", other, other, 9)
    assert not allowed("tkill", OWN_PID, 9)
    assert allowed("socketpair", 1, 1)
    assert not allowed("socketpair", 2, 1)
    assert allowed("sendto", 3, 0x1000, 1, 0, 0, 0)
    assert not allowed("sendto", 3, 0x1000, 1, 0, 0x1000, 110)
    assert not allowed("sendto", 3, 0x1000, 1, 0, 0x7FFF << 32, 110)
    assert allowed("prlimit64", 0, 7, 0, 0x1000)
    assert not allowed("prlimit64", 0, 7, 0x1000, 0)
    assert not allowed("prlimit64", 0, 7, 1 << 32, 0)
    assert not allowed("prlimit64", 1, 7, 0, 0x1000)
    assert allowed("fcntl", 3, 1030)
    assert not allowed("fcntl", 3, 8)
    assert allowed("prctl", 15)
    assert not allowed("prctl", 1)
    assert allowed("ioctl", 0, 0x5401)
    assert not allowed("ioctl", 0, 0x5412)


@pytest.mark.parametrize("machine", PROCESSORS)
def test_calls_of_another_processor_end_the_process(machine: str) -> None:
    assert verdict(machine, "read", audit=0x40000003) == KILL
    assert verdict(machine, 0x40000000 + 39) == NOT_PERMITTED


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    path, pattern = HEADERS[machine]
    if not Path(path).exists():
        pytest.skip(f"no {path}")
    numbers = {name: int(number) for name, number in re.findall(pattern, Path(path).read_text())}
    if machine == "aarch64":
        numbers["newfstatat"] = numbers["fstatat"]
    architecture: Architecture = PROCESSORS[machine]
    assert architecture.calls == {name: numbers.get(name) for name in architecture.calls}
    assert len(architecture.calls) > 80
    never = (
        "execve execveat fork vfork socket connect bind ptrace mount sendmsg memfd_create shmget"
    )
    assert not set(never.split()) & architecture.calls.keys()


def test_an_unknown_processor_is_refused() -> None:
    with pytest.raises(OSError, match="riscv64"):
        filter_program("riscv64", OWN_PID)
