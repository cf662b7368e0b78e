"""What perftest's programs tell each other over TCP: fields of fixed size, each in both directions, the client's first.

Decides the formats. Knows no queue pair, and not how often what is told: that differs from test to test (peer.py).
"""

from __future__ import annotations

import re
import socket
import struct
from ipaddress import IPv6Address
from typing import NamedTuple

from softrnic.errors import WireError
from softrnic.spec import Mtu

PORT = 18515
VERSION = b"6.24"
"""The version of the exchange, perftest's own. From 6.28 on, peers would also compare their options."""
OLDEST_VERSION = 5.70  # perftest refuses older ones itself
TIMEOUT_SECONDS = 60.0
"""What the peer may take for a field: as long as its test takes."""

_VERSION_BYTES = 16
_KEYS_BYTES = 108  # the NUL is sent, too
_REPORT = (">Q", ">Q", ">d", ">d", ">d")
_CYCLE_BUFFER, _CACHE_LINE = 4096, 64
_KEYS = re.compile(
    rb"([0-9a-f]{4}):([0-9a-f]{4}):([0-9a-f]{6}):([0-9a-f]{6}):([0-9a-f]{8}):([0-9a-f]{16}):"
    rb"((?:[0-9a-f]{2}:){16})([0-9a-f]{8}):\0"
)


class Keys(NamedTuple):
    """One side's queue pair and memory."""

    qpn: int
    psn: int
    rkey: int
    vaddr: int
    gid: IPv6Address
    out_reads: int = 1
    lid: int = 0
    srqn: int = 0

    def emit(self) -> bytes:
        """As it is sent."""
        gid = b"".join(b"%02x:" % byte for byte in self.gid.packed)
        head = (self.lid, self.out_reads, self.qpn, self.psn, self.rkey, self.vaddr)
        return b"%04x:%04x:%06x:%06x:%08x:%016x:" % head + gid + b"%08x:\0" % self.srqn

    @classmethod
    def parse(cls, message: bytes) -> Keys:
        """What `emit` has made; WireError for anything else."""
        match = _KEYS.fullmatch(message)
        if match is None:
            raise WireError(f"not the keys of a perftest: {message!r}")
        lid, out_reads, qpn, psn, rkey, vaddr, gid, srqn = (
            int(digits.replace(b":", b""), 16) for digits in match.groups()
        )
        return cls(qpn, psn, rkey, vaddr, IPv6Address(gid), out_reads, lid, srqn)


class Report(NamedTuple):
    """A bandwidth test as its client saw it. Rates in MiB/s, and in millions of messages per second."""

    size: int
    iters: int
    peak: float
    average: float
    message_rate: float


class Exchange:
    """One connection between two sides."""

    def __init__(self, sock: socket.socket, *, client: bool) -> None:
        sock.settimeout(TIMEOUT_SECONDS)
        self._sock = sock
        self._client = client

    def begin(self, mtu: Mtu) -> Mtu:
        """Versions, sizes of buffer and cache line, and path MTUs; the smaller of these."""
        version = _version(self.swap(VERSION.ljust(_VERSION_BYTES, b"\0")))
        if version < OLDEST_VERSION:
            raise WireError(f"the peer's perftest speaks version {version:g}")
        self.swap(struct.pack(">i", _CYCLE_BUFFER))
        self.swap(struct.pack(">i", _CACHE_LINE))
        told = self.swap(b"%d\0" % mtu)
        try:
            return min(mtu, Mtu(int(told.rstrip(b"\0"))))
        except ValueError:
            raise WireError(f"not a path MTU: {told!r}") from None

    def keys(self, own: Keys) -> Keys:
        """The other's for ours; also to wait for the other."""
        return Keys.parse(self.swap(own.emit()))

    def report(self, own: Report) -> Report:
        """The other's for ours."""
        swapped = (self.swap(struct.pack(fmt, value)) for fmt, value in zip(_REPORT, own, strict=True))
        return Report(*(struct.unpack(fmt, told)[0] for fmt, told in zip(_REPORT, swapped, strict=True)))

    def swap(self, own: bytes) -> bytes:
        """As many bytes of the other."""
        if self._client:
            self._sock.sendall(own)
            return self._read(len(own))
        told = self._read(len(own))
        self._sock.sendall(own)
        return told

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = self._sock.recv(n - len(data))
            if not part:
                raise WireError(f"the peer hung up after {len(data)} of {n} bytes")
            data += part
        return data


def _version(told: bytes) -> float:
    """A string such as 6.24, and NULs."""
    match = re.match(rb"\d+\.\d+", told)
    if match is None:
        raise WireError(f"not a version of perftest: {told!r}")
    return float(match[0])
