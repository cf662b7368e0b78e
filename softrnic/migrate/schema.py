"""What a saved device consists of: frozen values with their ranges, in the terms of the specification.

A model of the device, not of the records: queues are lists that begin at their oldest entry, objects name one another
by their numbers and keys, timers are time left. Ranges here are those of single fields; what must fit together is
check.py's. A new field needs a default; a changed meaning needs a new section version.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from softrnic import layout
from softrnic.spec import MAX_MESSAGE

_I64 = (1 << 63) - 1

Bit = Annotated[int, Meta(ge=0, le=1)]
U3 = Annotated[int, Meta(ge=0, le=7)]
U5 = Annotated[int, Meta(ge=0, le=31)]
U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U24 = Annotated[int, Meta(ge=0, le=0xFFFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, Meta(ge=0)]  # msgpack has nothing above 2^64-1
Size = Annotated[int, Meta(ge=0, le=_I64)]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]  # with room to go on counting
I64 = Annotated[int, Meta(ge=-_I64 - 1, le=_I64)]
Nanoseconds = Annotated[int, Meta(ge=0, le=1 << 40)]
Key = Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
Access = Annotated[int, Meta(ge=0, le=0x7F)]
Length = Annotated[int, Meta(ge=0, le=MAX_MESSAGE)]
Ip = Annotated[bytes, Meta(min_length=16, max_length=16)]
Mac = Annotated[bytes, Meta(min_length=6, max_length=6)]
Ordinal = Annotated[int, Meta(ge=0, le=1 << 20)]  # place in the list of PDs or address handles
RdAtomic = Annotated[int, Meta(ge=0, le=layout.MAX_RD_ATOMIC)]


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """By field name; what has its default value is not written."""


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, array_like=True):
    """By position, for what there is much of."""


# --- the device and its addresses -----------------------------------------------------------------------------


class Gid(_State, frozen=True, kw_only=True):
    """One local address."""

    index: Annotated[int, Meta(ge=0, lt=layout.MAX_GID)]
    ip: Ip
    mac: Mac
    vlan: Annotated[int, Meta(ge=1, le=4094)] | None = None


class DeviceState(_State, frozen=True, kw_only=True):
    """Section 1."""

    node_guid: U64
    next_qpn: U24
    key_variant: U8 = 0
    gids: list[Gid] = []


class Path(_State, frozen=True, kw_only=True):
    """An address vector."""

    dgid: Ip
    sgid_index: Annotated[int, Meta(ge=0, lt=layout.MAX_GID)]
    dmac: Mac
    traffic_class: U8 = 0
    flow_label: Annotated[int, Meta(ge=0, le=0xFFFFF)] = 0
    hop_limit: U8 = 64
    sport: Annotated[int, Meta(ge=1, le=0xFFFF)] | None = None


# --- memory ---------------------------------------------------------------------------------------------------


class Slot(_State, frozen=True, kw_only=True):
    """A stretch of an address space with memory behind it; as a region, it is a name for bytes that travel apart."""

    addr: Size
    length: Annotated[int, Meta(ge=1, le=_I64)]
    name: Annotated[str, Meta(min_length=1, max_length=255)]


class Space(_State, frozen=True, kw_only=True):
    """An address space. What is present in it, and what has been written, begins anew."""

    page_size: Annotated[int, Meta(ge=4096, le=1 << 30)] = 4096
    paged: bool = False
    slots: Annotated[list[Slot], Meta(max_length=layout.MAX_SLOT)] = []


class SpaceState(_State, frozen=True, kw_only=True):
    """Section 7, written when there are any."""

    spaces: Annotated[list[Space], Meta(max_length=layout.MAX_SPACE)] = []


class Region(_State, frozen=True, kw_only=True):
    """A memory region. `name` says whose bytes these are; the bytes themselves travel apart.

    One of an address space has no bytes of its own. `ranges` are pairs of little-endian 64-bit address and length, none
    for all of the space.
    """

    pd: Ordinal
    key: Key
    name: Annotated[str, Meta(min_length=1, max_length=255)]
    iova: Size
    length: Size
    access: Access
    valid: bool = True
    space: Ordinal | None = None  # place in the list of address spaces
    ranges: bytes = b""
    odp: bool = False


class Binding(_State, frozen=True, kw_only=True):
    """What a window shows, and for a window of type 2 on which QP."""

    parent: Key
    iova: Size
    length: Size
    access: Access
    qpn: U24 | None = None


class Window(_State, frozen=True, kw_only=True):
    """A memory window."""

    pd: Ordinal
    key: Key
    kind: Annotated[int, Meta(ge=1, le=2)]
    bound: Binding | None = None


class Ah(_State, frozen=True, kw_only=True):
    """An address handle."""

    pd: Ordinal
    path: Path


class MemoryState(_State, frozen=True, kw_only=True):
    """Section 2."""

    pds: Ordinal = 0
    regions: list[Region] = []
    windows: list[Window] = []
    ahs: list[Ah] = []


# --- queues ---------------------------------------------------------------------------------------------------


class Sge(_Row, frozen=True, kw_only=True):
    """A scatter/gather entry."""

    addr: I64
    length: U32
    lkey: U32


Sges = Annotated[list[Sge], Meta(max_length=layout.MAX_SGE)]


class RecvWqe(_Row, frozen=True, kw_only=True):
    """A posted receive."""

    wr_id: U64
    sges: Sges


class Cqe(_Row, frozen=True, kw_only=True):
    """A completion not yet polled."""

    wr_id: U64
    status: Annotated[int, Meta(ge=0, le=21)]
    opcode: U8
    vendor_err: U32
    byte_len: U32
    imm: U32
    qpn: U24
    src_qp: U24
    wc_flags: U8


class Cq(_State, frozen=True, kw_only=True):
    """A completion queue."""

    cqn: Annotated[int, Meta(ge=0, lt=layout.MAX_CQ)]
    size: Annotated[int, Meta(ge=1, le=layout.CQ_ENTRIES)]
    armed: Annotated[int, Meta(ge=0, le=2)] = 0
    overrun: bool = False
    entries: list[Cqe] = []


class Srq(_State, frozen=True, kw_only=True):
    """A shared receive queue."""

    srqn: Annotated[int, Meta(ge=0, lt=layout.MAX_SRQ)]
    pd: Ordinal
    max_wr: Annotated[int, Meta(ge=1, le=1 << 20)]
    max_sge: Annotated[int, Meta(ge=1, le=layout.MAX_SGE)]
    limit: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    error: bool = False
    posted: list[RecvWqe] = []


class QueueState(_State, frozen=True, kw_only=True):
    """Section 3."""

    cqs: list[Cq] = []
    srqs: list[Srq] = []


# --- queue pairs ----------------------------------------------------------------------------------------------


class SendWqe(_Row, frozen=True, kw_only=True):
    """A posted send work request; PSNs and SSN once it was started."""

    wr_id: U64
    opcode: U8
    flags: U8
    state: Annotated[int, Meta(ge=0, le=3)]
    status: Annotated[int, Meta(ge=0, le=21)]
    sges: Sges
    inline: Annotated[bytes, Meta(max_length=layout.MAX_SGE * 16)] | None
    remote_addr: I64
    rkey: U32
    imm: U32
    compare_add: I64
    swap: I64
    ah: Ordinal | None
    dqpn: U24
    qkey: U32
    first_psn: U24
    last_psn: U24
    ssn: U24
    bind_length: I64
    bind_key: Key | None
    bind_access: U32


class Requester(_State, frozen=True, kw_only=True):
    """The sending half, and what is known of the peer's answers."""

    req_psn: U24 = 0
    una_psn: U24 = 0
    hi_psn: U24 = 0
    ssn: U24 = 1
    limit_ssn: U24 | None = None  # None: the peer gives no credits
    retry_left: U3 = 0
    rnr_left: U3 = 0
    rnr_wait_ns: Nanoseconds | None = None
    gap_psn: U24 | None = None
    unacked: Ordinal = 0
    srtt_ns: Nanoseconds = 0
    rttvar_ns: Nanoseconds = 0
    cur: Ordinal = 0  # place in `sq` of the one being sent
    hi: Ordinal = 0  # and of the first never started
    off: Length = 0  # payload bytes of it already sent
    sq: list[SendWqe] = []


class Play(_Row, frozen=True, kw_only=True):
    """An answer under way: PSNs from `start` to `end`, next `cur`; `stop`: offset behind its last byte."""

    start_psn: U24
    cur_psn: U24
    end_psn: U24
    stop: Length


class RdRes(_Row, frozen=True, kw_only=True):
    """A READ (`orig` None) or an atomic that may have to be answered again."""

    first_psn: U24
    npsn: Annotated[int, Meta(ge=1, le=1 << 23)]
    msn: U24
    key: U32
    va: I64
    length: Length
    orig: I64 | None
    play: Play | None


class Responder(_State, frozen=True, kw_only=True):
    """The receiving half."""

    epsn: U24 = 0
    msn: U24 = 0
    message: Annotated[int, Meta(ge=0, le=3)] = 0  # layout.RespMsg
    nak_sent: bool = False
    ack: Annotated[int, Meta(ge=0, le=2)] = 0  # layout.AckState
    ack_syndrome: U8 = 0
    ack_psn: U24 = 0
    held: RecvWqe | None = None
    off: Length = 0
    va: I64 = 0
    resid: Length = 0
    key: U32 = 0
    rq: list[RecvWqe] = []
    rd: list[RdRes] = []
    rd_owed: RdAtomic = 0  # the last so many were never answered
    rd_head: Annotated[int, Meta(ge=0, le=layout.MAX_RD_ATOMIC)] = 0  # the last so many may be due


class Cap(_Row, frozen=True, kw_only=True):
    """ibv_qp_cap."""

    max_send_wr: Ordinal
    max_recv_wr: Ordinal
    max_send_sge: U8
    max_recv_sge: U8
    max_inline_data: U16


class Qp(_State, frozen=True, kw_only=True):
    """A queue pair. `reached` is how far it was configured, `state` where it is, or where it goes on."""

    qpn: Annotated[int, Meta(ge=1, le=0xFFFFFF)]
    type: Annotated[int, Meta(ge=1, le=4)]
    state: Annotated[int, Meta(ge=0, le=6)]
    reached: Annotated[int, Meta(ge=0, le=3)]
    suspended: bool = False
    pd: Ordinal
    send_cq: Ordinal
    recv_cq: Ordinal
    srq: Ordinal | None = None
    cap: Cap
    sq_sig_all: bool = False
    access: Access = 0
    qkey: U32 = 0
    dqpn: U24 = 0
    path: Path | None = None
    path_mtu: Annotated[int, Meta(ge=1, le=5)] = 5
    timeout: U5 = 0
    retry_cnt: U3 = 0
    rnr_retry: U3 = 0
    min_rnr_timer: U5 = 0
    rnr_fault_timer: U5 = 0
    max_rd_atomic: RdAtomic = 0
    max_dest_rd_atomic: RdAtomic = 0
    sqd_notified: bool = False
    comm_est: bool = False
    last_wqe: bool = False
    used_timeout: U5 | None = None  # None: as requested
    used_retry_cnt: U3 | None = None
    used_rnr_retry: U3 | None = None
    peer_may_stop: bool = False
    peer_may_move: bool = False
    groups: Annotated[list[Ip], Meta(max_length=layout.MAX_GROUP)] = []  # multicast
    req: Requester = Requester()
    resp: Responder = Responder()


class QpState(_State, frozen=True, kw_only=True):
    """Section 4."""

    qps: list[Qp] = []


class Event(_Row, frozen=True, kw_only=True):
    """An event not yet fetched: ibv_event_type and the number of the QP, CQ or SRQ."""

    type: U8
    number: U24


class EventState(_State, frozen=True, kw_only=True):
    """Section 5."""

    events: Annotated[list[Event], Meta(max_length=layout.EVENT_ENTRIES)] = []


class CounterState(_State, frozen=True, kw_only=True):
    """Section 6, optional: counters by name. One that the reader does not know is left out."""

    counters: dict[str, Count] = {}


# Section id -> (schema, newest version, optional). One that was not there from the beginning may be missing.
LATER = (7,)
SECTIONS: dict[int, tuple[type[Any], int, bool]] = {
    1: (DeviceState, 1, False),
    2: (MemoryState, 1, False),
    3: (QueueState, 1, False),
    4: (QpState, 1, False),
    5: (EventState, 1, False),
    6: (CounterState, 1, True),
    7: (SpaceState, 1, False),
}
