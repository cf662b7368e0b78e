"""Classic BPF filters: what a socket or tap hands to us at all. An assembler of a few lines and a program.

A filter runs before the frame is queued, so traffic that is not ours costs neither buffer space nor a
system call.
"""

from __future__ import annotations

import ctypes
import functools
import socket
import struct
from collections.abc import Callable, Sequence

from netio.header import ETH_ARP, ETH_IPV4, ETH_IPV6, PROTO_ICMPV6, PROTO_UDP
from softrnic.spec import ROCE_UDP_PORT

# linux/bpf_common.h
_LD_W, _LD_H, _LD_B, _LD_H_IND, _LDX_MSH = 0x20, 0x28, 0x30, 0x48, 0xB1
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06
_AD_VLAN_TAG, _AD_VLAN_TAG_PRESENT = 0xFFFFF000 + 44, 0xFFFFF000 + 48  # linux/filter.h: SKF_AD_OFF + ...
_VLAN_ID = 0x0FFF
_WHOLE = 0xFFFFFFFF

_SO_ATTACH_FILTER = 26

Instruction = tuple[int, int, str, str]  # code, k, label if true, label if false; "" is the next instruction


def _assemble(program: Sequence[str | Instruction]) -> bytes:
    """Instructions with labels to struct sock_filter[]."""
    labels: dict[str, int] = {}
    plain: list[Instruction] = []
    for item in program:
        if isinstance(item, str):
            labels[item] = len(plain)
        else:
            plain.append(item)
    return b"".join(
        struct.pack("=HBBI", code, *(labels[to] - at - 1 if to else 0 for to in (yes, no)), k)
        for at, (code, k, yes, no) in enumerate(plain)
    )


def _untagged() -> list[str | Instruction]:
    """A tag the kernel has taken out belongs to a VLAN device on top, unless it only tells the priority."""
    return [
        (_LD_W, _AD_VLAN_TAG_PRESENT, "", ""),
        (_JEQ, 0, "untagged", ""),
        (_LD_W, _AD_VLAN_TAG, "", ""),
        (_JSET, _VLAN_ID, "drop", ""),
        "untagged",
    ]


def roce_filter(*, vlan: bool = False, neighbours: bool = False) -> bytes:
    """Unfragmented UDP to port 4791; `neighbours` adds ARP and ICMPv6, `vlan` tagged frames."""
    return _assemble(
        [
            *([] if vlan else _untagged()),
            (_LD_H, 12, "", ""),
            (_JEQ, ETH_IPV6, "ipv6", ""),
            *([(_JEQ, ETH_ARP, "accept", "")] if neighbours else []),
            (_JEQ, ETH_IPV4, "", "drop"),
            (_LD_B, 23, "", ""),
            (_JEQ, PROTO_UDP, "", "drop"),
            (_LD_H, 20, "", ""),
            (_JSET, 0x3FFF, "drop", ""),
            (_LDX_MSH, 14, "", ""),
            (_LD_H_IND, 16, "", ""),
            (_JEQ, ROCE_UDP_PORT, "accept", "drop"),
            "ipv6",
            (_LD_B, 20, "", ""),
            *([(_JEQ, PROTO_ICMPV6, "accept", "")] if neighbours else []),
            (_JEQ, PROTO_UDP, "", "drop"),
            (_LD_H, 56, "", ""),
            (_JEQ, ROCE_UDP_PORT, "accept", "drop"),
            "accept",
            (_RET, _WHOLE, "", ""),
            "drop",
            (_RET, 0, "", ""),
        ]
    )


def attach(program: bytes, call: Callable[[bytes], object]) -> None:
    """Have `call` hand a struct sock_fprog to the kernel; its pointer is good for that call only."""
    memory = ctypes.create_string_buffer(program, len(program))
    call(struct.pack("@HP", len(program) // 8, ctypes.addressof(memory)))


def attach_socket(sock: socket.socket, program: bytes) -> None:
    """SO_ATTACH_FILTER."""
    attach(program, functools.partial(sock.setsockopt, socket.SOL_SOCKET, _SO_ATTACH_FILTER))
