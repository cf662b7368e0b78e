"""Frames built with softrnic.wire, for the tests of softrnic.wire."""

from __future__ import annotations

from typing import Any

import numpy as np

from softrnic.layout import AV
from softrnic.wire import frame, headers, icrc
from softrnic.wire.opcodes import OPCODES, OpFlag

SMAC, DMAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
V4 = {"sip": bytes((10, 0, 0, 1)), "dip": bytes((10, 0, 0, 2))}
V6 = {
    "sip": bytes.fromhex("fd00000000000000020000fffe000001"),
    "dip": bytes.fromhex("fd00000000000000020000fffe000002"),
}
FAMILIES = {"v4": V4, "v6": V6}
GUARD = 0xA5  # what lies around a frame in its buffer


def make_av(**changes: Any) -> np.ndarray:
    """One address vector in an array of two (index 1)."""
    avs = np.zeros(2, AV)
    usual = {"vlan": None, "tclass": 0x6A, "flow_label": 0x12345, "hop_limit": 64, "sport": 0xC001}
    frame.build_av(avs[1], **{"smac": SMAC, "dmac": DMAC, **usual, **V4, **changes})
    return avs


# One value of every field, different from each other and from their own byte swaps.
VALUES = {
    "se": 1, "pkey": 0x8001, "dqpn": 0x123456, "ackreq": 1, "psn": 0xFFFFFE,
    "va": 0x7F0123456789ABC0, "rkey": 0x89ABCDEF, "length": 0x00010203,
    "syndrome": 0x61, "msn": 0xABCDEF, "swap": 0x1122334455667788, "compare": 0x0123456789ABCDEF,
    "orig": 0x0FEDCBA987654321, "imm": 0xDEADBEEF, "inv_rkey": 0x00C0FFEE,
    "qkey": 0x80010000, "sqpn": 0x654321,
}  # fmt: skip


def put_transport(buf: np.ndarray, bth: int, opcode: int, payload: bytes, values: dict[str, int]) -> int:
    """BTH, extension headers, payload and padding at `bth`; where the ICRC goes."""
    v = values
    padcnt = -len(payload) % 4
    row = OPCODES[opcode]
    headers.put_bth(buf, bth, opcode, v["se"], padcnt, v["pkey"], v["dqpn"], v["ackreq"], v["psn"])
    o = bth + headers.BTH_LEN
    for flag, put, length, names in (
        (OpFlag.DETH, headers.put_deth, headers.DETH_LEN, ("qkey", "sqpn")),
        (OpFlag.RETH, headers.put_reth, headers.RETH_LEN, ("va", "rkey", "length")),
        (OpFlag.ATOMICETH, headers.put_atomiceth, headers.ATOMICETH_LEN, ("va", "rkey", "swap", "compare")),
        (OpFlag.AETH, headers.put_aeth, headers.AETH_LEN, ("syndrome", "msn")),
        (OpFlag.ATOMICACKETH, headers.put_atomicacketh, headers.ATOMICACKETH_LEN, ("orig",)),
        (OpFlag.IMMDT, headers.put_immdt, headers.IMMDT_LEN, ("imm",)),
        (OpFlag.IETH, headers.put_ieth, headers.IETH_LEN, ("inv_rkey",)),
    ):
        if row.flags & flag:
            put(buf, o, *(v[name] for name in names))
            o += length
    if row.flags & OpFlag.CNP:
        buf[o : o + headers.CNP_RESV_LEN] = 0
        o += headers.CNP_RESV_LEN
    assert o - bth - headers.BTH_LEN == row.ext_len
    data = payload + bytes(padcnt)
    buf[o : o + len(data)] = np.frombuffer(data, np.uint8)
    return o + len(data)


def build(avs: np.ndarray, opcode: int, payload: bytes, ip_id: int = 0, **values: int) -> bytes:
    """One whole frame."""
    buf = np.full(10000, GUARD, np.uint8)
    bth = 64 + int(avs[1]["hdr_len"])
    end = put_transport(buf, bth, opcode, payload, {**VALUES, **values})
    length = end + headers.ICRC_LEN - bth
    assert frame.put_link(buf, 64, avs, 1, length, ip_id) == bth
    seed = icrc.icrc_seed(int(avs[1]["icrc_base"]), int(avs[1]["is_v6"]), ip_id, length)
    icrc.put_icrc(buf, end, icrc.icrc_finish(icrc.icrc_bth(seed, buf, bth, end - bth)))
    assert (buf[:64] == GUARD).all()
    assert (buf[bth + length :] == GUARD).all()
    return buf[64 : bth + length].tobytes()


def place(data: bytes, off: int = 5) -> np.ndarray:
    """`data` at `off` of a buffer with guards on both sides."""
    buf = np.full(off + len(data) + 7, GUARD, np.uint8)
    buf[off : off + len(data)] = np.frombuffer(data, np.uint8)
    return buf


def check(data: bytes, off: int = 5, id_unknown: int = 0) -> bool:
    """The receive path's verdict on the ICRC of a one-packet frame."""
    buf = place(data, off)
    link = frame.parse_link(buf, off, len(data), 0)
    assert link.err == 0
    base = icrc.icrc_base(buf, link.l3_off, link.is_v6)
    return bool(icrc.icrc_check(buf, link.bth_off, link.seg_len, base, link.is_v6, link.ip_id, id_unknown))
