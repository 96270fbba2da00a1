"""The system calls that a judged program may make; all others fail with "not permitted".

An allow-list: a call that some later kernel adds is refused until somebody has thought about it.
Threads may be started, processes and programs may not. Signals reach the program itself only. There
are no sockets but pairs, and nothing is sent to an address. What a path may be opened for is
Landlock's to say.
"""

import functools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_NOT_PERMITTED: Final = 0x00050000 | 1
_NOT_IMPLEMENTED: Final = 0x00050000 | 38

_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_AT_LEAST: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06

_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16

_CLONE_THREAD: Final = 0x00010000
_AF_UNIX: Final = 1
_FIRST_X32_CALL: Final = 0x40000000

# F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC; not F_SETOWN, which makes the kernel send signals
_FCNTL_COMMANDS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL_REQUESTS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME
_PRCTL_OPTIONS: Final = (15, 16)

ALLOWED: Final = frozenset(
    {
        # descriptors and what is read from or written to them
        "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev",
        "preadv2", "pwritev2", "close", "close_range", "lseek", "dup", "dup2", "dup3", "pipe",
        "pipe2", "sendfile", "copy_file_range",
        # files, within what Landlock leaves
        "open", "openat", "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs",
        "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents", "getdents64",
        "getcwd", "chdir", "fchdir", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat",
        "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "truncate",
        "ftruncate", "fallocate", "fadvise64", "fsync", "fdatasync", "flock", "umask",
        # memory
        "mmap", "mprotect", "munmap", "mremap", "madvise", "msync", "mincore", "brk",
        # signals to itself, timers
        "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigsuspend",
        "rt_sigtimedwait", "sigaltstack", "alarm", "pause", "setitimer", "getitimer",
        "restart_syscall",
        # threads
        "futex", "futex_waitv", "sched_yield", "sched_getaffinity", "sched_getparam",
        "sched_getscheduler", "sched_get_priority_max", "sched_get_priority_min", "getpriority",
        "set_tid_address", "set_robust_list", "get_robust_list", "rseq", "membarrier",
        "arch_prctl", "gettid", "getcpu",
        # the process
        "exit", "exit_group", "wait4", "waitid", "getpid", "getppid", "getuid", "geteuid",
        "getgid", "getegid", "getresuid", "getresgid", "getgroups", "getpgrp", "getpgid",
        "getsid", "capget", "getrusage", "getrlimit", "times", "sysinfo", "uname",
        # time and chance
        "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time",
        "getrandom",
        # waiting, and talking over a pair of sockets
        "select", "pselect6", "poll", "ppoll", "epoll_create", "epoll_create1", "epoll_ctl",
        "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2", "recvfrom", "recvmsg",
        "shutdown", "getsockname", "getpeername", "getsockopt",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A processor's name in the kernel, and the numbers of its system calls.

    Source:
        Linux: include/uapi/linux/audit.h, arch/x86/entry/syscalls/syscall_64.tbl,
        include/uapi/asm-generic/unistd.h.
    """

    audit: int
    calls: dict[str, int]


X86_64: Final = Architecture(
    0xC000003E,
    {
        "read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18,
        "preadv": 295, "pwritev": 296, "preadv2": 327, "pwritev2": 328, "close": 3,
        "close_range": 436, "lseek": 8, "dup": 32, "dup2": 33, "dup3": 292, "pipe": 22,
        "pipe2": 293, "open": 2, "openat": 257, "stat": 4, "fstat": 5, "lstat": 6,
        "newfstatat": 262, "statx": 332, "statfs": 137, "fstatfs": 138, "access": 21,
        "faccessat": 269, "faccessat2": 439, "readlink": 89, "readlinkat": 267, "getdents": 78,
        "getdents64": 217, "getcwd": 79, "chdir": 80, "fchdir": 81, "mkdir": 83, "mkdirat": 258,
        "rmdir": 84, "unlink": 87, "unlinkat": 263, "rename": 82, "renameat": 264,
        "renameat2": 316, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266,
        "truncate": 76, "ftruncate": 77, "fallocate": 285, "fadvise64": 221, "fsync": 74,
        "fdatasync": 75, "flock": 73, "umask": 95, "sendfile": 40, "copy_file_range": 326,
        "mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "madvise": 28, "msync": 26,
        "mincore": 27, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
        "rt_sigpending": 127, "rt_sigsuspend": 130, "rt_sigtimedwait": 128, "sigaltstack": 131,
        "alarm": 37, "pause": 34, "setitimer": 38, "getitimer": 36, "restart_syscall": 219,
        "futex": 202, "futex_waitv": 449, "sched_yield": 24, "sched_getaffinity": 204,
        "sched_getparam": 143, "sched_getscheduler": 145, "sched_get_priority_max": 146,
        "sched_get_priority_min": 147, "getpriority": 140, "set_tid_address": 218,
        "set_robust_list": 273, "get_robust_list": 274, "rseq": 334, "membarrier": 324,
        "arch_prctl": 158, "gettid": 186, "getcpu": 309, "exit": 60, "exit_group": 231,
        "wait4": 61, "waitid": 247, "getpid": 39, "getppid": 110, "getuid": 102, "geteuid": 107,
        "getgid": 104, "getegid": 108, "getresuid": 118, "getresgid": 120, "getgroups": 115,
        "getpgrp": 111, "getpgid": 121, "getsid": 124, "capget": 125, "clock_gettime": 228,
        "clock_getres": 229, "clock_nanosleep": 230, "nanosleep": 35, "gettimeofday": 96,
        "time": 201, "times": 100, "getrusage": 98, "sysinfo": 99, "uname": 63, "getrlimit": 97,
        "getrandom": 318, "select": 23, "pselect6": 270, "poll": 7, "ppoll": 271,
        "epoll_create": 213, "epoll_create1": 291, "epoll_ctl": 233, "epoll_wait": 232,
        "epoll_pwait": 281, "epoll_pwait2": 441, "eventfd2": 290, "recvfrom": 45, "recvmsg": 47,
        "shutdown": 48, "getsockname": 51, "getpeername": 52, "getsockopt": 55, "clone": 56,
        "clone3": 435, "fcntl": 72, "ioctl": 16, "prctl": 157, "prlimit64": 302, "kill": 62,
        "tkill": 200, "tgkill": 234, "socketpair": 53, "sendto": 44,
    },
)  # fmt: skip
AARCH64: Final = Architecture(
    0xC00000B7,
    {
        "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68,
        "preadv": 69, "pwritev": 70, "preadv2": 286, "pwritev2": 287, "close": 57,
        "close_range": 436, "lseek": 62, "dup": 23, "dup3": 24, "pipe2": 59, "openat": 56,
        "fstat": 80, "newfstatat": 79, "statx": 291, "statfs": 43, "fstatfs": 44,
        "faccessat": 48, "faccessat2": 439, "readlinkat": 78, "getdents64": 61, "getcwd": 17,
        "chdir": 49, "fchdir": 50, "mkdirat": 34, "unlinkat": 35, "renameat": 38,
        "renameat2": 276, "linkat": 37, "symlinkat": 36, "truncate": 45, "ftruncate": 46,
        "fallocate": 47, "fadvise64": 223, "fsync": 82, "fdatasync": 83, "flock": 32,
        "umask": 166, "sendfile": 71, "copy_file_range": 285, "mmap": 222, "mprotect": 226,
        "munmap": 215, "mremap": 216, "madvise": 233, "msync": 227, "mincore": 232, "brk": 214,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "rt_sigpending": 136,
        "rt_sigsuspend": 133, "rt_sigtimedwait": 137, "sigaltstack": 132, "setitimer": 103,
        "getitimer": 102, "restart_syscall": 128, "futex": 98, "futex_waitv": 449,
        "sched_yield": 124, "sched_getaffinity": 123, "sched_getparam": 121,
        "sched_getscheduler": 120, "sched_get_priority_max": 125, "sched_get_priority_min": 126,
        "getpriority": 141, "set_tid_address": 96, "set_robust_list": 99,
        "get_robust_list": 100, "rseq": 293, "membarrier": 283, "gettid": 178, "getcpu": 168,
        "exit": 93, "exit_group": 94, "wait4": 260, "waitid": 95, "getpid": 172, "getppid": 173,
        "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "getresuid": 148,
        "getresgid": 150, "getgroups": 158, "getpgid": 155, "getsid": 156, "capget": 90,
        "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "nanosleep": 101,
        "gettimeofday": 169, "times": 153, "getrusage": 165, "sysinfo": 179, "uname": 160,
        "getrlimit": 163, "getrandom": 278, "pselect6": 72, "ppoll": 73, "epoll_create1": 20,
        "epoll_ctl": 21, "epoll_pwait": 22, "epoll_pwait2": 441, "eventfd2": 19,
        "recvfrom": 207, "recvmsg": 212, "shutdown": 210, "getsockname": 204,
        "getpeername": 205, "getsockopt": 209, "clone": 220, "clone3": 435, "fcntl": 25,
        "ioctl": 29, "prctl": 167, "prlimit64": 261, "kill": 129, "tkill": 130, "tgkill": 131,
        "socketpair": 199, "sendto": 206,
    },
)  # fmt: skip
ARCHITECTURES: Final = {"x86_64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}

Instruction = tuple[int, int, int, int]


@functools.cache
def filter_program(machine: str, own_pid: int) -> bytes:
    """The filter as a BPF program for a process that knows itself as ``own_pid``.

    Raises:
        OSError: the numbers of this machine's system calls are not known.
    """
    if machine not in ARCHITECTURES:
        raise OSError(f"no list of system calls for the processor {machine}")
    architecture = ARCHITECTURES[machine]
    steps: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, 0, 1, _FIRST_X32_CALL),
        (_RETURN, 0, 0, _NOT_PERMITTED),
    ]
    for name, number in architecture.calls.items():
        if name in ALLOWED:
            steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for name, rule in _rules(own_pid).items():
        if name in architecture.calls:
            steps += [(_JUMP_EQUAL, 0, len(rule), architecture.calls[name]), *rule]
    steps.append((_RETURN, 0, 0, _NOT_PERMITTED))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _rules(own_pid: int) -> dict[str, list[Instruction]]:
    """What becomes of calls whose arguments matter; each rule ends in a verdict."""
    return {
        # its flags lie in memory, where no filter sees them: libc then takes clone
        "clone3": [(_RETURN, 0, 0, _NOT_IMPLEMENTED)],
        "clone": [_low(0), (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD), *_ALLOW_ELSE_NOT],
        "fcntl": _if_low_is_one_of(1, _FCNTL_COMMANDS),
        "ioctl": _if_low_is_one_of(1, _IOCTL_REQUESTS),
        "prctl": _if_low_is_one_of(0, _PRCTL_OPTIONS),
        "kill": _if_low_is_one_of(0, (own_pid,)),
        "tgkill": _if_low_is_one_of(0, (own_pid,)),
        "socketpair": _if_low_is_one_of(0, (_AF_UNIX,)),
        # an own limit may be read, none may be set
        "prlimit64": _if_zero([_low(0), _low(2), _high(2)]),
        # a datagram socket of a pair could otherwise reach any socket that has a path
        "sendto": _if_zero([_low(4), _high(4)]),
    }


_ALLOW_ELSE_NOT: Final[list[Instruction]] = [
    (_RETURN, 0, 0, _ALLOW),
    (_RETURN, 0, 0, _NOT_PERMITTED),
]


def _low(argument: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)


def _high(argument: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument + 4)


def _if_low_is_one_of(argument: int, values: Iterable[int]) -> list[Instruction]:
    listed = list(values)
    tests = [
        (_JUMP_EQUAL, len(listed) - 1 - index, 1 if index == len(listed) - 1 else 0, value)
        for index, value in enumerate(listed)
    ]
    return [_low(argument), *tests, *_ALLOW_ELSE_NOT]


def _if_zero(words: list[Instruction]) -> list[Instruction]:
    steps: list[Instruction] = []
    for index, word in enumerate(words):
        to_refusal = 2 * (len(words) - 1 - index) + 1
        steps += [word, (_JUMP_EQUAL, 0, to_refusal, 0)]
    return [*steps, *_ALLOW_ELSE_NOT]
