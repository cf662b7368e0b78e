"""Frames that a peer might send and frames that it never would, with a valid ICRC. Kernel code.

A frame starts as what would be right at this moment - the next packet of the message being received, an answer to the
oldest request - and then each field has its chance to be wrong, by one, by a lot, or by belonging to something else.
Decides nothing about what the engine should make of it.
"""

from __future__ import annotations

from softrnic.jit import addr_of, frozen, i64, inline, memcpy, memset
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, RespMsg
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.spec import Op, Service, WrOpcode
from softrnic.wire.fields import get8, put8, put16, put32, put64
from softrnic.wire.frame import ipv4_sum
from softrnic.wire.headers import BTH_LEN, put_aeth, put_bth, put_deth, put_reth
from softrnic.wire.icrc import crc32_update, icrc_base, icrc_bth, icrc_finish, icrc_seed, put_icrc
from softrnic.wire.opcodes import OpFlag, op_ext_len, op_flags
from tests.fuzz.records import World
from tests.sim.chance import below, draw

_RC_OPS = frozen([*range(21), 22, 23], "i8")
_UC_OPS = frozen(range(12), "i8")
_UD_OPS = frozen([4, 5], "i8")
_STARTS = frozen([0, 4, 5, 6, 10, 11, 4, 10, 12, 12, 19, 20, 0, 6, 23], "i8")
_SEND_GOES_ON = frozen([1, 2, 3, 22, 1, 2], "i8")
_WRITE_GOES_ON = frozen([7, 8, 9, 7, 8, 8], "i8")
_SYNDROMES = frozen([0x1F, 0x00, 0x05, 0x1E, 0x20, 0x21, 0x3F, 0x60, 0x60, 0x61, 0x62, 0x63, 0x64, 0x40, 0x80], "i8")
_LENGTHS = frozen([0, 1, 2, 3, 4, 5, 8], "i8")
_DMA_LENGTHS = frozen([0, 1, 1 << 31, (1 << 31) + 1, 0xFFFFFFFF, 0x7FFFFFFF], "i8")
_PSN_JUMPS = frozen([1, 2, -1, -2, -3, 8, -8, 1 << 22, 1 << 23, (1 << 23) - 1, -(1 << 23) + 1], "i8")


@inline
def _one_in(rng, n):
    """True once in n times."""
    return below(rng, n) == 0


@inline
def _pick(rng, table):
    return i64(table[below(rng, len(table))])


@inline
def _head_wqe(eng, qp):
    return eng["wqes"][i64(qp["sq_base"]) + (i64(qp["sq_head"]) & i64(qp["sq_mask"]))]


@inline
def _due_answer(eng, qp):
    """The opcode that would answer the oldest request."""
    if i64(qp["sq_head"]) < i64(qp["sq_hi"]):
        wqe = _head_wqe(eng, qp)
        una = i64(qp["una_psn"])
        if wqe["opcode"] == WrOpcode.RDMA_READ:
            if una == i64(wqe["last_psn"]):
                return Op.READ_RESPONSE_ONLY.value if una == i64(wqe["first_psn"]) else Op.READ_RESPONSE_LAST.value
            return Op.READ_RESPONSE_FIRST.value if una == i64(wqe["first_psn"]) else Op.READ_RESPONSE_MIDDLE.value
        if wqe["opcode"] == WrOpcode.ATOMIC_CMP_AND_SWP or wqe["opcode"] == WrOpcode.ATOMIC_FETCH_AND_ADD:
            return Op.ATOMIC_ACKNOWLEDGE.value
    return Op.ACKNOWLEDGE.value


@inline
def _opcode(fz, eng, qp):
    """Five of six times one that follows from what was before."""
    service = i64(fz["service"])
    if _one_in(fz, 40):
        return draw(fz) & 0xFF
    if service == Service.UD.value:
        return service | _pick(fz, _UD_OPS)
    if service == Service.RC.value and _one_in(fz, 4):
        return service | _due_answer(eng, qp)
    if _one_in(fz, 6):
        return service | (_pick(fz, _RC_OPS) if service == Service.RC.value else _pick(fz, _UC_OPS))
    if qp["resp_op"] == RespMsg.SEND:
        op = _pick(fz, _SEND_GOES_ON)
    elif qp["resp_op"] == RespMsg.WRITE:
        op = _pick(fz, _WRITE_GOES_ON)
    else:
        op = _pick(fz, _STARTS)
    return service | op


@inline
def _right_length(fz, eng, qp, opcode, flags):
    """Payload bytes that would be right."""
    pmtu = i64(qp["pmtu"])
    if flags & OpFlag.PAYLOAD == 0:
        return 0
    if flags & OpFlag.RESPONSE:
        if i64(qp["sq_head"]) >= i64(qp["sq_hi"]):
            return 0
        wqe = _head_wqe(eng, qp)
        left = i64(wqe["length"]) - psn_diff(i64(qp["una_psn"]), i64(wqe["first_psn"])) * pmtu
        return max(0, min(pmtu, left))
    if flags & OpFlag.LAST == 0:
        return pmtu
    if flags & OpFlag.WRITE and flags & OpFlag.FIRST == 0:
        return max(0, min(pmtu, i64(qp["resp_resid"])))
    return 1 + below(fz, pmtu)


@inline
def _length(fz, eng, qp, opcode, flags):
    """Payload bytes."""
    if not _one_in(fz, 10):
        return _right_length(fz, eng, qp, opcode, flags)
    if _one_in(fz, 3):
        return i64(qp["pmtu"]) + below(fz, 4) - 1
    return _pick(fz, _LENGTHS) if _one_in(fz, 2) else below(fz, i64(qp["pmtu"]) + 1)


@inline
def _psn(fz, qp, flags):
    if flags & OpFlag.RESPONSE:
        psn = i64(qp["una_psn"])
        if _one_in(fz, 2):
            psn = psn_add(psn, below(fz, 1 + psn_diff(i64(qp["req_hi_psn"]), psn)))
    else:
        psn = i64(qp["epsn"])
    if _one_in(fz, 8):
        psn = psn_add(psn, _pick(fz, _PSN_JUMPS))
    return draw(fz) & 0xFFFFFF if _one_in(fz, 64) else psn


@inline
def _put_memory(w, at, flags, n):
    """RETH or AtomicETH at slab[at]: a region, a place in it, a length; each wrong now and then."""
    fz, slab = w.fz[0], w.rx.slab
    region = w.regions[below(fz, len(w.regions)) if _one_in(fz, 4) else 0]
    if flags & OpFlag.ATOMICETH:
        region = w.regions[1] if not _one_in(fz, 8) else region
    size = n
    if flags & OpFlag.READ:
        size = below(fz, i64(region["length"]) + 1)
    elif flags & OpFlag.LAST == 0:
        size = n + 1 + below(fz, 2 * n + 2)
    elif flags & OpFlag.ATOMICETH:
        size = 8
    va = i64(region["iova"])
    room = i64(region["length"]) - size
    where = below(fz, 8)
    if where < 4 and room > 0:
        va += below(fz, room + 1)
    elif where == 4:
        va += room
    elif where == 5 and _one_in(fz, 2):
        va += room + 1
    elif where == 6 and _one_in(fz, 2):
        va -= 1
    elif _one_in(fz, 8):
        va = draw(fz) << 32 | draw(fz)
    if flags & OpFlag.ATOMICETH and not _one_in(fz, 8):
        va &= ~7
    key = i64(region["key"])
    if _one_in(fz, 24):
        key = i64(w.regions[below(fz, len(w.regions))]["key"]) if _one_in(fz, 2) else draw(fz)
    if flags & OpFlag.ATOMICETH:
        put64(slab, at, va)
        put32(slab, at + 8, key)
        put64(slab, at + 12, draw(fz))
        put64(slab, at + 20, draw(fz) if _one_in(fz, 2) else 0)
        return
    if _one_in(fz, 24):
        size = _pick(fz, _DMA_LENGTHS) if _one_in(fz, 2) else size + below(fz, 3) - 1
    put_reth(slab, at, va, key, size & 0xFFFFFFFF)


@inline
def _put_extensions(w, at, flags, n):
    """Extension headers from slab[at] on, in the order of the wire."""
    fz, slab = w.fz[0], w.rx.slab
    qp = w.engs[0]["qps"][i64(fz["qp"])]
    if flags & OpFlag.DETH:
        qkey = draw(fz) if _one_in(fz, 16) else i64(fz["qkey"])
        put_deth(slab, at, qkey, draw(fz) & 0xFFFFFF)
        at += 8
    if flags & (OpFlag.RETH | OpFlag.ATOMICETH):
        _put_memory(w, at, flags, n)
        at += 16 if flags & OpFlag.RETH else 28
    if flags & OpFlag.AETH:
        syndrome = 0x1F if not _one_in(fz, 3) else _pick(fz, _SYNDROMES)
        msn = psn_add(i64(qp["ssn"]), -1) if not _one_in(fz, 4) else draw(fz) & 0xFFFFFF
        put_aeth(slab, at, draw(fz) & 0xFF if _one_in(fz, 32) else syndrome, msn)
        at += 4
    if flags & OpFlag.ATOMICACKETH:
        put64(slab, at, draw(fz))
        at += 8
    if flags & OpFlag.IMMDT:
        put32(slab, at, draw(fz))
    elif flags & OpFlag.IETH:
        # the last two regions are there to be invalidated
        which = len(w.regions) - 1 - below(fz, 2) if not _one_in(fz, 4) else below(fz, len(w.regions))
        put32(slab, at, i64(w.regions[which]["key"]) if not _one_in(fz, 8) else draw(fz))


@inline
def _put_transport(w, bth):
    """BTH to padding at slab[bth]: bytes from the BTH to the ICRC."""
    fz, slab, eng = w.fz[0], w.rx.slab, w.engs[0]
    qp = eng["qps"][i64(fz["qp"])]
    opcode = _opcode(fz, eng, qp)
    fz["in_ops"][opcode] += 1
    flags = op_flags(opcode)
    n = _length(fz, eng, qp, opcode, flags)
    pad = -n & 3 if not _one_in(fz, 32) else below(fz, 4)
    dqpn, pkey = i64(qp["qpn"]), 0xFFFF
    if _one_in(fz, 64):
        dqpn = dqpn ^ 1 << below(fz, 24) if _one_in(fz, 2) else draw(fz) & 0xFFFFFF
    if _one_in(fz, 48):
        pkey = 0x7FFF if _one_in(fz, 2) else draw(fz) & 0xFFFF
    put_bth(slab, bth, opcode, below(fz, 2), pad, pkey, dqpn, below(fz, 2), _psn(fz, qp, flags))
    if _one_in(fz, 64):
        put8(slab, bth + 1, draw(fz) & 0xFF)
    if _one_in(fz, 16):
        put8(slab, bth + 4, draw(fz) & 0xFF)
    ext_len = op_ext_len(opcode)
    _put_extensions(w, bth + BTH_LEN, flags, n)
    memcpy(addr_of(slab) + bth + BTH_LEN + ext_len, addr_of(w.noise) + below(fz, 4096), n)
    memset(addr_of(slab) + bth + BTH_LEN + ext_len + n, 0, 4)
    length = BTH_LEN + ext_len + n + (-n & 3) + 4
    if _one_in(fz, 12):
        for _ in range(1 + below(fz, 3)):
            put8(slab, bth + below(fz, BTH_LEN + ext_len), draw(fz) & 0xFF)
    if _one_in(fz, 24):
        length = max(16, length + 4 * (below(fz, 9) - 4))
    return length


@inline
def _put_lengths(w, off, total):
    """IP and UDP lengths, identification and header checksum for `total` bytes of UDP payload."""
    fz, slab = w.fz[0], w.rx.slab
    l3 = off + i64(fz["l3"])
    udp = off + i64(fz["hdr_len"]) - 8
    put16(slab, udp + 4, 8 + total)
    if i64(fz["is_v6"]):
        put16(slab, l3 + 4, 8 + total)
        return
    put16(slab, l3 + 2, 28 + total)
    put16(slab, l3 + 4, draw(fz) & 0xFFFF)
    _put_checksum(slab, l3)


@inline
def _put_checksum(slab, l3):
    put16(slab, l3 + 10, 0)
    put16(slab, l3 + 10, ~ipv4_sum(slab, l3) & 0xFFFF)


@inline
def _spoil_link(w, off, length):
    """One thing about Ethernet, IP or UDP is wrong; the frame's new length."""
    fz, slab = w.fz[0], w.rx.slab
    l3 = off + i64(fz["l3"])
    l3_len = i64(fz["hdr_len"]) - i64(fz["l3"]) - 8
    udp = l3 + l3_len
    what = below(fz, 10)
    if what == 0:
        return below(fz, length + 1)  # cut short
    if what == 1:
        return length + 1 + below(fz, 46)  # Ethernet padding: no error
    if what == 2:
        put8(slab, off + 12 + below(fz, i64(fz["l3"]) - 12), draw(fz) & 0xFF)
    elif what == 3:
        put8(slab, l3 + below(fz, l3_len), draw(fz) & 0xFF)
        return length  # checksum and all
    elif what == 4:
        put8(slab, udp + below(fz, 8), draw(fz) & 0xFF)
    elif what == 5:
        put16(slab, udp + 4, draw(fz) & 0xFFFF)
    elif what == 6:
        put8(slab, l3 + (8 if i64(fz["is_v6"]) else 12) + below(fz, 4), draw(fz) & 0xFF)  # somebody else's address
    elif what == 7:
        put8(slab, l3 + l3_len - 1 - below(fz, 4), draw(fz) & 0xFF)  # for somebody else
    else:
        put8(slab, l3 + below(fz, l3_len), draw(fz) & 0xFF)
    if i64(fz["is_v6"]) == 0:
        _put_checksum(slab, l3)
    return length


@inline
def _put_icrcs(w, off, length, nseg):
    """A valid ICRC for each of `nseg` packets of `length` bytes."""
    fz, slab = w.fz[0], w.rx.slab
    l3, bth, is_v6 = off + i64(fz["l3"]), off + i64(fz["hdr_len"]), i64(fz["is_v6"])
    base = icrc_base(slab, l3, is_v6)
    ip_id = 0 if is_v6 else get8(slab, l3 + 4) << 8 | get8(slab, l3 + 5)
    for i in range(nseg):
        crc = icrc_seed(base, is_v6, (ip_id + i) & 0xFFFF, length)
        crc = icrc_bth(crc, slab, bth, BTH_LEN)
        crc = crc32_update(crc, slab, bth + BTH_LEN, length - BTH_LEN - 4)
        put_icrc(slab, bth + length - 4, icrc_finish(crc))
        bth += length


@inline
def build_frame(w: World, slot: int) -> None:
    """The next frame, in slot `slot` of w.rx. fz["bth"], ["packet_len"], ["nseg"]: where its packets are."""
    fz, slab = w.fz[0], w.rx.slab
    off = slot * FRAME_STRIDE + FRAME_HEADROOM
    hdr_len = i64(fz["hdr_len"])
    memcpy(addr_of(slab) + off, addr_of(w.header), hdr_len)
    bth = off + hdr_len
    length = _put_transport(w, bth)
    nseg, seg = 1, 0
    if _one_in(fz, 24):
        nseg = 2 + below(fz, 3)
        seg = length
        step = below(fz, 2)
        for i in range(1, nseg):
            memcpy(addr_of(slab) + bth + i * length, addr_of(slab) + bth, length)
            psn = get8(slab, bth + 9) << 16 | get8(slab, bth + 10) << 8 | get8(slab, bth + 11)
            put32(slab, bth + i * length + 8, get8(slab, bth + 8) << 24 | psn_add(psn, i * step))
    elif _one_in(fz, 200):
        seg = below(fz, 2 * length)
    total = nseg * length
    _put_lengths(w, off, total)
    whole = hdr_len + total
    if _one_in(fz, 24):
        whole = _spoil_link(w, off, whole)
    _put_icrcs(w, off, length, nseg)
    frame = w.rx.frames[slot]
    frame["off"], frame["len"], frame["seg"] = off, whole, seg
    frame["flags"] = 1 if _one_in(fz, 32) else 0
    frame["func"] = 0
    fz["bth"], fz["packet_len"] = bth, length
    fz["nseg"] = max(nseg, (total + seg - 1) // seg if seg else 1)
