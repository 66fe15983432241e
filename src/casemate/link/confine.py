"""Takes from a link what it does not need, before it reads the first byte of its qube: a hijacked link gets little.

Its user (root only), new privileges, other programs, other processes, the network, all files but its sockets, and
system calls that have a history of holes in the kernel. The numbers are those of x86-64 (linux/seccomp.h,
linux/filter.h, asm/unistd_64.h); on another architecture there is no filter, and everything else holds. Without
Landlock in the kernel its files are those that its user may open.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import time

from casemate.link import landlock

MAX_FILES = 4096
"""Limit of a qube's link (open files): each call has a socket, and a qube may have a thousand at once."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
_X32 = 0x40000000  # the bit that marks calls of the x32 ABI, which has the same architecture
_SOCKET, _AF_UNIX = 41, 1
_DENIED = (
    56, 57, 58, 435,            # clone, fork, vfork, clone3: a link is one process with one thread
    59, 322,                    # execve, execveat
    101, 310, 311, 312, 438,    # ptrace, process_vm_readv, process_vm_writev, kcmp, pidfd_getfd
    155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442,  # pivot_root, chroot, mounts, unshare, setns
    175, 176, 313, 246, 320,    # kernel modules, kexec
    248, 249, 250,              # add_key, request_key, keyctl
    298, 321, 323, 425, 426, 427,  # perf_event_open, bpf, userfaultfd, io_uring
    303, 304,                   # name_to_handle_at, open_by_handle_at
    105, 106, 113, 114, 117, 119,  # setuid, setgid and their kin
)  # fmt: skip
"""System calls that answer EPERM."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def _program() -> bytes:
    """The filter: instructions of classic BPF, each (code, jump if true, jump if false, operand)."""
    body = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in _DENIED:
        body += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    body += [
        (_EQUAL, 0, 3, _SOCKET),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, _AF_UNIX),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *one) for one in body)


def become(uid: int, gid: int) -> None:
    """Leave root for the qube's user and group, and no other group."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _files(directory: str) -> dict[str, int]:
    """What a link may do with files: make and remove its sockets, be a terminal, and import what it has not yet."""
    terminal = landlock.READ_FILE | landlock.WRITE_FILE | landlock.DEVICE_CONTROL
    code = landlock.READ_FILE | landlock.READ_DIR
    return {
        directory: landlock.MAKE_SOCKET | landlock.REMOVE_FILE,
        "/dev/null": landlock.READ_FILE | landlock.WRITE_FILE,
        "/dev/ptmx": terminal,
        "/dev/pts": terminal,
        os.path.dirname(os.__file__): code,
        os.path.dirname(os.path.dirname(__file__)): code,
    }


def confine(directory: str | None = None) -> int:
    """Give up what a link never needs; there is no way back. OSError where the kernel refuses.

    ``directory`` has the sockets that it makes and removes; with None files are left as they are. Returns the version
    of Landlock that holds it to that, 0 for none.
    """
    for what, most in (
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_CORE, 0),  # what a qube sent would lie on the disk
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        _soft, hard = resource.getrlimit(what)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1, 0)
    held = 0
    if directory is not None:
        time.localtime()  # reads the time zone, which the log needs
        held = landlock.restrict(_files(directory))
    if os.uname().machine == "x86_64":
        code = _program()
        instructions = ctypes.create_string_buffer(code, len(code))
        # struct sock_fprog: the number of instructions and where they are.
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
        _prctl(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(program))
    return held


def _prctl(libc: ctypes.CDLL, option: int, first: int, second: object) -> None:
    if libc.prctl(option, first, second, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
