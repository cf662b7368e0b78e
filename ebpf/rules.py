"""What a steering rule is, and its bytes in the program's maps.

A rule says what becomes of the RoCEv2 packets for one address and queue pair. This file decides the layout
that `program.py` (inside the kernel) and `table.py` (outside) share; it knows neither bpf(2) nor any packet.

    key    0                                16      20
           | destination address (GID)      |  QPN  |

    value  0        4        8         14        20   24        32      40
           | action | target | dst MAC | src MAC | -- | packets | bytes |

Addresses are GIDs, as in RoCEv2 itself: IPv6, or IPv4 as ::ffff:a.b.c.d. Integers are in host byte order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from softrnic.spec import QPN_MASK

MAX_RULES = 1 << 16
MAX_TARGETS = 64
MAX_QUEUES = 64  # receive queues of one interface that can have AF_XDP sockets

ANY_ADDRESS = bytes(16)
ANY_QPN = 0xFFFFFFFF  # no queue pair: QPNs have 24 bits
V4_MAPPED = bytes(10) + b"\xff\xff"

KEY = struct.Struct("=16sI")
VALUE = struct.Struct("=2I6s6s4x2Q")
COUNT = struct.Struct("=2Q")

# Offsets of the fields, as the boxes above.
KEY_ADDRESS, KEY_QPN = 0, 16
VALUE_ACTION, VALUE_TARGET, VALUE_MACS, VALUE_DST_MAC, VALUE_PACKETS, VALUE_BYTES = 0, 4, 8, 8, 24, 32
COUNT_PACKETS, COUNT_BYTES = 0, 8

Address = str | IPv4Address | IPv6Address


class Action(IntEnum):
    """What becomes of a packet. `docs/ebpf.md` has the table of what each hook makes of it."""

    PASS    = 0  # the host stack's
    DROP    = 1  # nobody's: the queue pair is suspended
    KEEP    = 2  # kept from the host stack, for AF_PACKET sockets to read
    SOCKET  = 3  # for the sockets of function `target`
    FORWARD = 4  # out of interface `target`, with new MAC addresses: the queue pair has moved


class Counter(IntEnum):
    """Index in the counter array: first one per action, then why an action could not be done."""

    PASS      = Action.PASS
    DROP      = Action.DROP
    KEEP      = Action.KEEP
    SOCKET    = Action.SOCKET
    FORWARD   = Action.FORWARD
    NO_RULE   = 5  # RoCEv2, but no rule matches: left to the host stack
    NO_SOCKET = 6  # SOCKET, but function and queue have no AF_XDP socket: dropped
    LOOP      = 7  # FORWARD to the very host the packet came from: dropped
    NO_BTH    = 8  # too short for a queue pair number; counted besides the action of the address's rule


@dataclass(frozen=True, slots=True)
class Count:
    """As on the wire: the segments of a super-frame count one by one; bytes from the Ethernet header on."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Rule:
    """An action and its arguments. Made by the functions below, which know which arguments go together."""

    action: Action
    target: int = 0
    dst_mac: bytes = bytes(6)
    src_mac: bytes = bytes(6)

    @staticmethod
    def to_pass() -> Rule:
        """Leave the packets to the host stack."""
        return Rule(Action.PASS)

    @staticmethod
    def drop() -> Rule:
        """Count and drop."""
        return Rule(Action.DROP)

    @staticmethod
    def keep() -> Rule:
        """Keep from the host stack; AF_PACKET sockets see the packets all the same."""
        return Rule(Action.KEEP)

    @staticmethod
    def to_socket(target: int = 0) -> Rule:
        """Deliver to the sockets registered for function `target`."""
        if not 0 <= target < MAX_TARGETS:
            raise ValueError(f"target {target} is not below {MAX_TARGETS}")
        return Rule(Action.SOCKET, target)

    @staticmethod
    def forward(ifindex: int, dst_mac: str | bytes, src_mac: str | bytes) -> Rule:
        """Send on, out of interface `ifindex`, from `src_mac` to `dst_mac`. The ICRC does not cover them."""
        if not 0 < ifindex < 1 << 31:
            raise ValueError(f"interface index {ifindex} is not positive")
        return Rule(Action.FORWARD, ifindex, mac_bytes(dst_mac), mac_bytes(src_mac))


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule as it stands in the kernel. None means any."""

    address: IPv4Address | IPv6Address | None
    qpn: int | None
    rule: Rule
    count: Count  # since the rule was set


def mac_bytes(mac: str | bytes) -> bytes:
    """The six bytes of `aa:bb:cc:dd:ee:ff`."""
    raw = mac if isinstance(mac, bytes) else bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"a MAC address has 6 bytes, not {len(raw)}")
    return raw


def pack_key(address: Address | None, qpn: int | None) -> bytes:
    """The key of an address and a QPN; None is any. A QPN means something only at an address."""
    if qpn is not None and not 0 <= qpn <= QPN_MASK:
        raise ValueError(f"qpn {qpn:#x} has more than 24 bits")
    if address is None and qpn is not None:
        raise ValueError("a rule for a queue pair needs the address it is at")
    return KEY.pack(ANY_ADDRESS if address is None else _gid(address), ANY_QPN if qpn is None else qpn)


def pack_rule(rule: Rule) -> bytes:
    """The rule as a map value, its counters at zero."""
    return VALUE.pack(rule.action, rule.target, rule.dst_mac, rule.src_mac, 0, 0)


def unpack_entry(key: bytes, value: bytes) -> Entry:
    """The inverse of `pack_key` and `pack_rule`."""
    gid, qpn = KEY.unpack(key)
    action, target, dst_mac, src_mac, packets, size = VALUE.unpack(value)
    return Entry(
        address=_address(gid),
        qpn=None if qpn == ANY_QPN else qpn,
        rule=Rule(Action(action), target, dst_mac, src_mac),
        count=Count(packets, size),
    )


def socket_slot(target: int, queue: int) -> int:
    """Where the socket map has the socket of function `target` on receive queue `queue`."""
    if not (0 <= target < MAX_TARGETS and 0 <= queue < MAX_QUEUES):
        raise ValueError(f"no slot for target {target}, queue {queue}")
    return target * MAX_QUEUES + queue


def _gid(address: Address) -> bytes:
    parsed = ip_address(address)
    gid = V4_MAPPED + parsed.packed if isinstance(parsed, IPv4Address) else parsed.packed
    if gid == ANY_ADDRESS:
        raise ValueError("the unspecified address cannot be a destination")
    return gid


def _address(gid: bytes) -> IPv4Address | IPv6Address | None:
    if gid == ANY_ADDRESS:
        return None
    address = IPv6Address(gid)
    return address.ipv4_mapped or address
