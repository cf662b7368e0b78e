"""The bpf(2) system call: maps, programs and links, as file descriptors.

Decides nothing: it turns Python values into the kernel's `union bpf_attr` and errno into `BpfError`, with the
verifier's own words when a program is refused. Knows nothing of packets, rules or interfaces' purpose.
Field order follows `union bpf_attr` of include/uapi/linux/bpf.h; see bpf(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, Self

from softrnic.errors import IoError

# __NR_bpf. The numbers differ per architecture and libc has no wrapper.
_SYSCALL_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280}

_LIBC = ctypes.CDLL(None, use_errno=True)
_LICENSE = b"MIT\0"  # GPL-compatible ones open more helpers; we use none of those
_LOG_BYTES = 1 << 20
_TEST_ROOM = 256  # by how much a program under test may make its packet longer


Buffer = ctypes.Array[ctypes.c_char]


class Cmd(IntEnum):
    MAP_CREATE       = 0
    MAP_LOOKUP_ELEM  = 1
    MAP_UPDATE_ELEM  = 2
    MAP_DELETE_ELEM  = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD        = 5
    PROG_TEST_RUN    = 10
    LINK_CREATE      = 28


class MapType(IntEnum):
    HASH   = 1
    ARRAY  = 2
    XSKMAP = 17


class MapFlag(IntEnum):
    NO_PREALLOC = 1 << 0  # memory for an element when it is made, not for all of them at once


class ProgType(IntEnum):
    SOCKET_FILTER = 1
    SCHED_CLS     = 3
    XDP           = 6


class AttachType(IntEnum):
    XDP         = 37
    TCX_INGRESS = 46


class ProgFlag(IntEnum):
    XDP_HAS_FRAGS = 1 << 5  # the program copes with packets that do not lie in one piece of memory


class BpfError(IoError):
    """The kernel refused a bpf(2) command: `errno` says why, `log` is the verifier's (or empty)."""

    errno: int

    def __init__(self, command: Cmd, errno: int, log: str = "") -> None:
        super().__init__(errno, f"bpf {command.name}")
        self.command = command
        self.log = log

    def __str__(self) -> str:
        return f"{self.strerror}\n{self.log}" if self.log else str(self.strerror)


class Fd:
    """A descriptor closed once, by `close()` or by leaving a `with` block."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        if self._number >= 0:
            os.close(self._number)
            self._number = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _bpf(command: Cmd, attr: Buffer) -> int:
    machine = platform.machine()
    if machine not in _SYSCALL_NUMBER:
        raise BpfError(command, errno.ENOSYS, f"the number of bpf(2) is not known for {machine}")
    result = _LIBC.syscall(
        ctypes.c_long(_SYSCALL_NUMBER[machine]), ctypes.c_long(command), attr, ctypes.c_ulong(len(attr))
    )
    if result < 0:
        raise BpfError(command, ctypes.get_errno())
    return int(result)


def _buffer(content: bytes | None) -> Buffer | None:
    """Memory for the kernel to read or write; none for what is empty, which it wants as a null pointer."""
    return ctypes.create_string_buffer(content, len(content)) if content else None


def _address(buffer: Buffer | None) -> int:
    return ctypes.addressof(buffer) if buffer is not None else 0


def _attr(layout: str, *values: int | bytes) -> Buffer:
    packed = struct.pack("=" + layout, *values)
    return ctypes.create_string_buffer(packed, len(packed))


class Map(Fd):
    """A BPF map. Keys and values cross as bytes of exactly the sizes given here."""

    def __init__(
        self, kind: MapType, name: str, *, key_size: int, value_size: int, max_entries: int, flags: int = 0
    ) -> None:
        attr = _attr("5I8x16s", kind, key_size, value_size, max_entries, flags, name.encode()[:15])
        super().__init__(_bpf(Cmd.MAP_CREATE, attr))
        self.kind = kind
        self.key_size = key_size
        self.value_size = value_size

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if len(value) != self.value_size:
            raise ValueError(f"value of {len(value)} bytes for a map of {self.value_size}-byte values")
        self._element(Cmd.MAP_UPDATE_ELEM, key, value)

    def __getitem__(self, key: bytes) -> bytes:
        try:
            return self._element(Cmd.MAP_LOOKUP_ELEM, key, bytes(self.value_size))
        except BpfError as error:
            raise _key_error(error, key) from error

    def __delitem__(self, key: bytes) -> None:
        try:
            self._element(Cmd.MAP_DELETE_ELEM, key, b"")
        except BpfError as error:
            raise _key_error(error, key) from error

    def __iter__(self) -> Iterator[bytes]:
        """The keys, taken at once: a key deleted meanwhile would restart the kernel's walk."""
        return iter(self._keys())

    def _keys(self) -> list[bytes]:
        keys: list[bytes] = []
        key: bytes | None = None
        while True:
            try:
                key = self._element(Cmd.MAP_GET_NEXT_KEY, key, bytes(self.key_size))
            except BpfError as error:
                if error.errno == errno.ENOENT:
                    return keys
                raise
            keys.append(key)

    def _element(self, command: Cmd, key: bytes | None, value: bytes) -> bytes:
        if key is not None and len(key) != self.key_size:
            raise ValueError(f"key of {len(key)} bytes for a map of {self.key_size}-byte keys")
        key_buffer = _buffer(key)
        value_buffer = _buffer(value)
        _bpf(command, _attr("I4xQQ8x", self.fileno(), _address(key_buffer), _address(value_buffer)))
        return value_buffer.raw if value_buffer else b""


def _key_error(error: BpfError, key: bytes) -> Exception:
    return KeyError(key) if error.errno == errno.ENOENT else error


class TestRun(NamedTuple):
    """What BPF_PROG_TEST_RUN reports: the program's return value and the packet as the program left it."""

    retval: int
    data: bytes


class Program(Fd):
    """A loaded, verified program."""

    def __init__(self, kind: ProgType, name: str, code: bytes, *, flags: int = 0) -> None:
        super().__init__(_load(kind, name, code, flags))
        self.kind = kind

    def test_run(self, packet: bytes, context: bytes = b"") -> TestRun:
        """Run once over `packet`, which no interface will see. The kernel insists on at least 14 bytes.

        `context`: a struct xdp_md or __sk_buff, for the fields that the packet does not tell.
        """
        data_in, context_in = _buffer(packet), _buffer(context)
        data_out = ctypes.create_string_buffer(len(packet) + _TEST_ROOM)
        attr = _attr(
            "4I2Q4I2Q16x",
            self.fileno(), 0, len(packet), len(data_out), _address(data_in), _address(data_out),
            1, 0, len(context), 0, _address(context_in), 0,
        )  # fmt: skip
        _bpf(Cmd.PROG_TEST_RUN, attr)
        _, retval, _, size_out = struct.unpack_from("=4I", attr.raw)
        return TestRun(retval, data_out.raw[:size_out])


def _load(kind: ProgType, name: str, code: bytes, flags: int) -> int:
    """PROG_LOAD; on refusal once more with the verifier's log on, so that the error can show it."""
    code_buffer, license_buffer = _buffer(code), _buffer(_LICENSE)

    def attempt(log_level: int, log_size: int, log_address: int) -> int:
        attr = _attr(
            "2I2Q2IQ2I16s",
            kind, len(code) // 8, _address(code_buffer), _address(license_buffer),
            log_level, log_size, log_address, 0, flags, name.encode()[:15],
        )  # fmt: skip
        return _bpf(Cmd.PROG_LOAD, attr)

    try:
        return attempt(0, 0, 0)
    except BpfError as refusal:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return attempt(1, _LOG_BYTES, _address(log))
        except BpfError:
            raise BpfError(Cmd.PROG_LOAD, refusal.errno, log.value.decode(errors="replace")) from None


BEFORE = 1 << 3
"""BPF_F_BEFORE, a flag of tcx links: ahead of the programs that are there."""


def link(program: Program, ifindex: int, attach_type: AttachType, flags: int = 0) -> Fd:
    """Attach by a link: closing the descriptor, or the death of its process, detaches."""
    return Fd(_bpf(Cmd.LINK_CREATE, _attr("4I32x", program.fileno(), ifindex, attach_type, flags)))
