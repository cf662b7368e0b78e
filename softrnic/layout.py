"""Every record the engine keeps, as numpy structured dtypes, and the rings that cross its borders.

The one truth for layouts: kernels index these records, the docs and the eBPF side are generated from them, and a
test classifies each field for migration. An engine is ONE record, `ENGINE`, with every table inside it: a kernel
takes one pointer, and an idle table costs address space only, since untouched pages are never committed.

Indices named `*_prod`, `*_head`, `*_cur`, `*_cons` count up for ever and are masked at use. Widths: PSN, QPN and SSN
24 bits in u4; addresses and lengths i8, so that anything of 2^63 and above from the wire fails a range check as
negative. No behaviour here.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

import numpy as np

Field = tuple[Any, ...]


def _record(fields: list[Field]) -> np.dtype:
    return np.dtype(fields, align=True)


# --- frames: what crosses between engine and port -------------------------------------------------------------

# A frame begins FRAME_LINEAR bytes before the end of a page. The kernel keeps as much of a super-frame apart and the
# rest in pages: both ends of its copies then lie at the same offset in a page. Where the offsets differ by a few bytes,
# some processors copy ("rep movsb") at a third of their speed.
PAGE = 4096
FRAME_LINEAR = 128
FRAME_HEADROOM = PAGE - FRAME_LINEAR  # the port's: a virtio-net header goes directly in front of the frame
FRAME_STRIDE = 18 * PAGE  # one slot; a super-frame is at most 65535 + 18 bytes


class FrameFlag(IntFlag):
    """FRAME["flags"]."""

    ID_UNKNOWN = 1  # the port could not see IP id and DF: the ICRC is checked modulo those


FRAME = _record(
    [
        ("off", "i8"),  # first byte of the Ethernet header in the slab
        ("len", "i4"),  # bytes from the Ethernet header to the end, without FCS
        ("seg", "i4"),  # 0: one packet; else UDP payload bytes of every segment but the last
        ("flags", "u4"),  # FrameFlag
        ("func", "u4"),  # reserved for steering, 0
    ]
)


class FrameRing(NamedTuple):
    """A burst of frames: slot i starts at `slab[i * FRAME_STRIDE]`, at a page of memory where `make_ring` made it."""

    frames: np.ndarray
    slab: np.ndarray


def make_ring(slots: int = 16) -> FrameRing:
    """A ring of `slots` empty frames."""
    frames = np.zeros(slots, FRAME)
    frames["off"] = np.arange(slots, dtype=np.int64) * FRAME_STRIDE + FRAME_HEADROOM
    slab = np.zeros(slots * FRAME_STRIDE + PAGE, np.uint8)
    return FrameRing(frames, slab[-slab.ctypes.data % PAGE :][: slots * FRAME_STRIDE])


# --- capacities of one engine ---------------------------------------------------------------------------------

MAX_QP = 16384 + 64  # 16,384 for the user and some for the GSI of each function
MAX_CQ = 32768
MAX_SRQ = 4096
MAX_MR = 1 << 17
MAX_AH = 16384
MAX_GID = 256
MAX_GROUP = 1024  # attachments of QPs to multicast groups
MAX_SPACE = 256
MAX_SLOT = 4096
MAX_FORWARD = 64
FORWARD_SLOTS = 32  # frames that wait to be sent on
SQ_ENTRIES = 1 << 20  # send WQEs of all QPs together
RQ_ENTRIES = 1 << 20  # receive WQEs of all QPs and SRQs together
SGE_ENTRIES = 1 << 22
CQ_ENTRIES = 1 << 20
RD_ENTRIES = 1 << 19
EVENT_ENTRIES = 1 << 16
HASH_QPN = 1 << 16
HASH_KEY = 1 << 19
DOORBELL_BITS = 32  # per 64-bit word, so that no value is ever negative
DOORBELL_WORDS = (MAX_QP + DOORBELL_BITS - 1) // DOORBELL_BITS
MAX_SGE = 32
MAX_RD_ATOMIC = 128
WHEEL_LEVELS = 7
WHEEL_SLOTS = 32
N_COUNTERS = 96


# --- address vector: the constant part of every packet to one destination --------------------------------------

AV_HDR_BYTES = 80  # Ethernet 14 + VLAN 4 + IPv6 40 + UDP 8 = 66, rounded up

AV = _record(
    [
        ("hdr", "u1", (AV_HDR_BYTES,)),  # Ethernet to UDP, lengths and IPv4 checksum zero
        ("hdr_len", "i4"),  # offset of the BTH
        ("l3_off", "i4"),  # offset of the IP header: 14, or 18 with a VLAN tag
        ("is_v6", "i4"),
        ("icrc_base", "u4"),  # raw CRC state after the masked headers with zero lengths and id
        ("ip_csum", "u4"),  # ones'-complement sum of the IPv4 header with zero length and id
        ("gid_index", "i4"),  # local GID it sends from
        ("valid", "i4"),
        ("pdn", "i4"),
    ]
)

GID = _record(
    [
        ("ip", "u1", (16,)),  # the address as a GID: IPv4 is ::ffff:a.b.c.d
        ("mac", "u1", (6,)),
        ("vlan", "i4"),  # -1: untagged
        ("func", "i4"),
        ("valid", "i4"),
    ]
)

GROUP = _record(
    [
        ("ip", "u1", (16,)),  # a multicast address
        ("qp", "i4"),  # attached to it
        ("valid", "i4"),
    ]
)

FORWARD = _record(
    [
        ("ip", "u1", (16,)),  # an address that has moved away
        ("here", "u1", (6,)),  # the MAC it had here
        ("mac", "u1", (6,)),  # of its new place
        ("via", "u1", (6,)),  # ours
        ("vlan", "i4"),  # tag of what is sent on; -1: the one it came with
        ("until", "i8"),  # ns
        ("left", "i8"),  # frames
        ("packets", "i8"),  # sent on
        ("valid", "i4"),
    ]
)

# --- work queues ----------------------------------------------------------------------------------------------


class WqeState(IntEnum):
    """WQE["state"], written by the engine only."""

    POSTED  = 0
    STARTED = 1  # PSNs assigned; may be sent again
    DONE    = 2  # a local operation that has run and waits for its turn to complete
    FAILED  = 3  # a local error found when it was started; completes with `status` when its turn comes


WQE = _record(
    [
        ("wr_id", "u8"),
        ("opcode", "u1"),  # WrOpcode
        ("flags", "u1"),  # SendFlags
        ("num_sge", "u1"),
        ("state", "u1"),  # WqeState
        ("status", "u4"),  # WcStatus of a FAILED one
        ("length", "i8"),  # payload bytes, summed by the engine; inline bytes as posted
        ("remote_addr", "i8"),
        ("rkey", "u4"),
        ("imm", "u4"),  # immediate data, or the rkey to invalidate
        ("compare_add", "i8"),
        ("swap", "i8"),
        ("ah", "i4"),  # UD: address handle
        ("dqpn", "u4"),
        ("qkey", "u4"),
        ("first_psn", "u4"),  # assigned at start
        ("last_psn", "u4"),
        ("ssn", "u4"),
        # LOCAL_INV, BIND_MW and REG_MR name what they work on by rkey; the new mapping is:
        ("bind_mr", "i4"),
        ("access", "u4"),
    ]
)

RWQE = _record([("wr_id", "u8"), ("num_sge", "i4"), ("length", "u4")])

SGE = _record([("addr", "i8"), ("length", "u4"), ("lkey", "u4")])

CQE = _record(
    [
        ("wr_id", "u8"),
        ("status", "u4"),  # WcStatus
        ("opcode", "u4"),  # WcOpcode
        ("vendor_err", "u4"),
        ("byte_len", "u4"),
        ("imm", "u4"),
        ("qpn", "u4"),
        ("src_qp", "u4"),
        ("wc_flags", "u4"),  # WcFlags
    ]
)

CQ = _record(
    [
        ("prod", "i8"),  # written by the engine
        ("cons", "i8"),  # written by the poller
        ("base", "i8"),
        ("mask", "i8"),
        ("armed", "u4"),  # 0 no, 1 next completion, 2 next solicited
        ("state", "u4"),  # 0 free, 1 ready, 2 overrun
        ("cqn", "u4"),
        ("func", "u4"),
    ]
)

SRQ = _record(
    [
        ("prod", "i8"),
        ("head", "i8"),
        ("base", "i8"),
        ("mask", "i8"),
        ("sge_base", "i8"),
        ("sge_max", "i4"),
        ("limit", "i4"),  # 0: not armed
        ("pdn", "i4"),
        ("state", "u4"),  # 0 free, 1 ready, 2 error
        ("srqn", "u4"),
        ("func", "u4"),
    ]
)

# --- responder resources: one per READ or ATOMIC that may have to be answered again ----------------------------


class RdState(IntEnum):
    """RD_RES["state"]."""

    FREE    = 0
    PENDING = 1  # an answer from `cur_psn` on is due
    DONE    = 2  # answered; kept for duplicates


RD_RES = _record(
    [
        ("first_psn", "u4"),
        ("last_psn", "u4"),
        ("start_psn", "u4"),  # first response packet of this (re)play
        ("cur_psn", "u4"),  # next response packet to send
        ("end_psn", "u4"),  # last response packet of this (re)play
        ("state", "u1"),
        ("atomic", "u1"),
        ("msn", "u4"),
        ("mr", "i4"),
        ("key", "u4"),  # rkey it was granted under, checked again on a replay
        ("va", "i8"),
        ("length", "i8"),
        ("stop", "i8"),  # offset behind the last byte of this (re)play
        ("orig", "i8"),  # value before the atomic
    ]
)

# --- queue pairs ----------------------------------------------------------------------------------------------

QP = _record(
    [
        # what every packet needs
        ("qpn", "u4"),
        ("dqpn", "u4"),
        ("type", "u1"),  # QpType; 0: the slot is free
        ("state", "u1"),  # QpState
        ("sched", "u1"),  # in the list of QPs with something to send
        ("fault", "u1"),  # PageWait bits: paused until a page is resolved
        ("pmtu", "i4"),
        ("pkey", "u4"),
        ("qkey", "u4"),
        ("func", "i4"),
        ("pdn", "i4"),
        ("sched_next", "i4"),
        # requester
        ("sq_prod", "i8"),  # written by whoever posts
        ("sq_head", "i8"),  # oldest WQE not yet completed
        ("sq_cur", "i8"),  # WQE being sent
        ("sq_hi", "i8"),  # first WQE never started: go-back-N may rewind sq_cur below it
        ("sq_base", "i8"),
        ("sq_mask", "i8"),
        ("sq_sge_base", "i8"),
        ("sq_sge_max", "i4"),
        ("sq_sig_all", "u1"),
        ("retry_cnt", "u1"),
        ("rnr_retry", "u1"),
        ("timeout", "u1"),
        ("req_off", "i8"),  # payload bytes of sq_cur already sent
        ("req_psn", "u4"),  # next to send
        ("req_hi_psn", "u4"),  # one past the highest ever sent
        ("una_psn", "u4"),  # oldest not acknowledged
        ("ssn", "u4"),  # of the next message started
        ("limit_ssn", "u4"),  # last message the peer's credits allow
        ("credits_valid", "u1"),
        ("retry_left", "u1"),
        ("rnr_left", "u1"),
        ("req_wait", "u1"),  # ReqWait
        ("gap_psn", "u4"),  # una_psn of the last implied or explicit sequence error acted on
        ("ahead_psn", "u4"),  # last response that showed the gap
        ("gap_valid", "u1"),
        ("max_rd_atomic", "u1"),
        ("rd_out", "i4"),  # READs and atomics sent and not answered
        ("cwnd", "i4"),  # packets that may be in flight
        ("cwnd_credit", "i4"),  # acknowledged packets since cwnd last grew
        ("ssthresh", "i4"),  # below it cwnd grows by one per acknowledged packet
        ("rtt_psn", "u4"),  # packet whose acknowledgement is being timed
        ("rtt_valid", "u1"),
        ("probes", "u1"),  # timer expiries since a round trip was last timed
        ("probe", "u1"),  # Probe
        ("rtt_at", "i8"),  # ns, when it was sent
        ("srtt", "i8"),  # ns, smoothed round trip; 0: not known
        ("rttvar", "i8"),  # ns, its mean deviation
        ("rtt_min", "i8"),  # ns, the shortest seen; 0: not known
        ("progress_at", "i8"),  # ns, start of the running local ACK timeout interval
        ("unacked_req", "i4"),  # packets sent since the last AckReq
        ("scq", "i4"),
        # responder
        ("epsn", "u4"),
        ("msn", "u4"),
        ("resp_op", "u1"),  # RespMsg: which message is being received
        ("nak_sent", "u1"),  # one NAK per gap: cleared by the expected PSN
        ("ack_state", "u1"),  # AckState: what the next transmit answers
        ("ack_syndrome", "u1"),
        ("resp_wqe", "u1"),  # a receive WQE is held in the copy below
        ("resp_se", "u1"),
        ("min_rnr_timer", "u1"),
        ("max_dest_rd_atomic", "u1"),
        ("ack_psn", "u4"),
        ("access", "u4"),
        ("resp_va", "i8"),
        ("resp_resid", "i8"),  # bytes the current WRITE still expects
        ("resp_off", "i8"),  # bytes of the current message already placed
        ("resp_mr", "i4"),
        ("resp_key", "u4"),
        ("resp_len", "i8"),
        ("resp_wr_id", "u8"),
        ("resp_nsge", "i4"),
        ("resp_sge_base", "i8"),  # copy of the SGEs of the receive WQE in use
        ("rcq", "i4"),
        ("srq", "i4"),  # -1: own receive queue
        ("rq_prod", "i8"),
        ("rq_head", "i8"),
        ("rq_base", "i8"),
        ("rq_mask", "i8"),
        ("rq_sge_base", "i8"),
        ("rq_sge_max", "i4"),
        ("rd_base", "i8"),
        ("rd_mask", "i8"),
        ("rd_head", "i8"),  # first resource that may be PENDING; a replay moves it back
        ("rd_done", "i8"),  # first resource never answered
        ("rd_tail", "i8"),  # next resource to fill
        # timer
        ("timer", "u1"),  # TimerKind
        ("timer_slot", "i4"),  # -1: not in the wheel
        ("timer_next", "i4"),
        ("timer_prev", "i4"),
        ("deadline", "i8"),  # ns, true deadline; the wheel may look earlier
        ("wheel_at", "i8"),  # ns, when the wheel looks
        # rare
        ("max_inline", "i4"),
        ("rnr_fault_timer", "u1"),  # RNR timer code when a page is missing; grows while the same request meets it again
        ("fault_tries", "u1"),  # RNR NAKs for the missing page that request `fault_psn` needs
        ("fault_psn", "u4"),
        ("sqd_notified", "u1"),
        ("comm_est", "u1"),
        ("last_wqe", "u1"),
        ("port", "u1"),
        ("quiet", "u1"),  # the requester and its timers stand still: first phase of a suspension
        ("hold", "u1"),  # Hold: what a suspended QP answers to requests
        ("hold_timer", "u1"),  # RNR timer code of Hold.RNR
        ("stop", "u1"),  # StopFlag: what was agreed with the peer beyond IBTA
        ("resume_to", "u1"),  # QpState a suspended QP returns to
        ("rnr_left_ns", "i8"),  # RNR wait brought along from elsewhere, not yet in the wheel
        ("gid_index", "i4"),
        ("src_ip", "u1", (16,)),  # peer's and own address as GIDs, checked on every packet of RC and UC
        ("dst_ip", "u1", (16,)),
        ("moved_ip", "u1", (16,)),  # where a peer that may move says it is now
        ("moved_mac", "u1", (6,)),
    ]
)


class ReqWait(IntEnum):
    """QP["req_wait"]: why the requester does not go on by itself."""

    NONE    = 0
    RNR     = 1  # the RNR timer runs
    STOPPED = 2  # the peer is suspended, and will say when it goes on
    RESUMED = 3  # we were, and the peer has not yet heard that we go on


class Probe(IntEnum):
    """QP["probe"]: one packet sent again to learn where the peer stands."""

    NONE = 0
    DUE  = 1
    SENT = 2


class RespMsg(IntEnum):
    """QP["resp_op"]."""

    NONE  = 0
    SEND  = 1
    WRITE = 2
    SKIP  = 3  # UC: the rest of a damaged message is ignored


class AckState(IntEnum):
    """QP["ack_state"]."""

    NONE = 0
    ACK  = 1  # acknowledge everything before epsn
    NAK  = 2  # send ack_syndrome with ack_psn (also RNR NAK)


class Hold(IntEnum):
    """QP["hold"]."""

    SILENCE = 0
    RNR     = 1  # an RNR NAK to the expected request: the peer waits and spends no retry
    STOP    = 2  # NAK 5 to any request: a peer that knows it waits until we resume


class StopFlag(IntFlag):
    """QP["stop"]."""

    STOP = 1  # each may tell the other that it is stopped, and that it goes on
    MOVE = 2  # and that it is at another address


class TimerKind(IntEnum):
    """QP["timer"]."""

    NONE = 0
    ACK  = 1
    RNR  = 2
    STOP = 3  # of ReqWait.STOPPED and RESUMED: ask, or say it, again


class PageWait(IntFlag):
    """QP["fault"]."""

    REQUESTER = 1
    RESPONDER = 2


# --- memory ---------------------------------------------------------------------------------------------------


class MrKind(IntEnum):
    """MR["kind"]."""

    FREE = 0
    MR   = 1
    MW1  = 2
    MW2  = 3


MR = _record(
    [
        ("key", "u4"),  # lkey and rkey are the same number
        ("kind", "u1"),
        ("valid", "u1"),  # 0: invalidated, or a window not bound
        ("odp", "u1"),  # a page that is not present is a fault, not an error
        ("pinned", "u1"),  # a hole is an error: what was registered was there
        ("held", "u1"),  # its memory is ours for certain, whatever the slot says
        ("access", "u4"),
        ("pdn", "i4"),
        ("iova", "i8"),
        ("length", "i8"),
        ("addr", "i8"),  # nranges == 1: address-space coordinate of iova
        ("ranges", "i8"),  # else: address of a table owned by the Mr object, of one of two forms:
        ("nranges", "i8"),  # its entries
        ("shift", "i4"),  # 0: {i8 offset, i8 addr}, sorted; else i8 addr of each 2^shift bytes
        ("space", "i4"),
        ("skew", "i8"),  # shift > 0: bytes of the first page before the region
        ("hint", "i8"),  # shift == 0: the entry used last
        ("parent", "i4"),  # of a window: the MR behind it
        ("windows", "i4"),  # bound to this MR
        ("qp", "i4"),  # MW2: the QP it is bound to
        ("func", "i4"),
    ]
)

# Counters of one region, as `rdma statistic show mr` names them.
MR_STAT = _record(
    [
        ("page_faults", "i8"),
        ("page_faults_handled", "i8"),
        ("page_invalidations", "i8"),
        ("page_invalidations_handled", "i8"),
        ("page_prefetch", "i8"),
    ]
)


class SpaceKind(IntEnum):
    """SPACE["kind"]."""

    FREE     = 0
    IDENTITY = 1  # this process: host address = address
    SLOTS    = 2  # slots, with throw-away pages in the holes


class Paging(IntEnum):
    """SPACE["paged"]."""

    NONE  = 0
    ODP   = 1  # on-demand regions look at the page table
    EVERY = 2  # every region does: the pages arrive later


SPACE = _record(
    [
        ("kind", "u1"),
        ("plain", "u1"),  # IDENTITY, neither tracking nor paged: nothing to look at
        ("tracking", "u1"),  # record the pages the device writes
        ("paged", "u1"),  # Paging
        # the page table: one bit per page from `first` on; addresses of bitmaps
        ("page_shift", "i4"),
        ("first", "i8"),
        ("npages", "i8"),
        ("present", "i8"),  # pages the device may read
        ("writable", "i8"),  # and write
        ("refused", "i8"),  # pages that never will be present: an access is an error
        # the dirty log
        ("dirty_shift", "i4"),
        ("wait_head", "i4"),  # first of the WAITs that wait for pages of the space, + 1; 0: none
        ("dirty_first", "i8"),
        ("dirty_pages", "i8"),
        ("dirty", "i8"),  # pages the device has written
        ("dirty_blocks", "i8"),  # one bit per 64 words of `dirty` that may hold a bit
        ("zeros", "i8"),  # a page of zeros: what a hole reads as
        ("slot_first", "i4"),
        ("nslots", "i4"),
        ("slot_hint", "i4"),  # the slot used last, relative to slot_first
    ]
)

SLOT = _record(
    [
        ("addr", "i8"),
        ("length", "i8"),
        ("host", "i8"),  # where it is in the process
        ("pid", "i4"),  # 0: ours for certain, else reached through process_vm_readv and -writev
        ("readonly", "i4"),
    ]
)

# A paused half of a QP: 2 * qp_index, + 1 for the responder. In a doubly linked list per address space.
WAIT = _record(
    [
        ("space", "i4"),  # + 1; 0: in no list
        ("next", "i4"),  # + 1
        ("prev", "i4"),  # + 1
        ("addr", "i8"),  # page needed
    ]
)

EVENT = _record(
    [
        ("type", "i4"),
        ("index", "i4"),
        ("arg", "i8"),
        # of a page fault, whose `index` is the space and `arg` the address:
        ("length", "i4"),  # bytes wanted from there
        ("mr", "i4"),
        ("flags", "i4"),  # FaultFlag
    ]
)


class FaultFlag(IntFlag):
    """EVENT["flags"] of a page fault."""

    WRITE  = 1
    FAILED = 2  # the page table said present, and yet the owner's memory was not to be had


HASH = _record([("key", "i8"), ("value", "i4")])  # key 0: empty

# --- the engine -----------------------------------------------------------------------------------------------

ENGINE = _record(
    [
        ("base", "i8"),  # own address
        ("now", "i8"),
        ("sched_head", "i4"),
        ("sched_tail", "i4"),
        ("max_frame", "i4"),  # bytes of a super-frame the port takes; 0: none
        ("max_segs", "i4"),
        ("tx_slot", "i4"),  # frame being built, -1: none
        ("tx_seg", "i4"),
        ("tx_nseg", "i4"),
        ("tx_av", "i4"),
        ("tx_n", "i4"),  # frames of this burst already closed
        ("tx_slots", "i4"),  # frames this burst may have
        ("tx_end", "i8"),  # where its next segment goes
        ("event_prod", "i8"),
        ("event_cons", "i8"),
        ("asleep", "i8"),  # whoever drives the engine sleeps: wake it after a doorbell
        ("fault_space", "i4"),  # where the last access met a page that is not present
        ("fault_flags", "i4"),
        ("fault_addr", "i8"),
        ("fault_mr", "i4"),
        ("fault_len", "i4"),
        ("iov", "i8", (4,)),  # two struct iovec, for memory of another process
        ("word", "i8"),  # an atomic's operand on its way there
        ("ngid", "i4"),
        ("ngroup", "i4"),
        ("nforward", "i4"),
        ("fwd_prod", "i8"),  # ring of frames to be sent on
        ("fwd_cons", "i8"),
        ("wheel_now", "i8"),  # ticks handled so far
        ("wheel_bits", "i8", (WHEEL_LEVELS,)),
        ("wheel", "i4", (WHEEL_LEVELS * WHEEL_SLOTS,)),
        ("counters", "i8", (N_COUNTERS,)),
        ("doorbells", "u8", (DOORBELL_WORDS,)),
        ("doorbell_any", "u8", ((DOORBELL_WORDS + DOORBELL_BITS - 1) // DOORBELL_BITS,)),
        ("gids", GID, (MAX_GID,)),
        ("groups", GROUP, (MAX_GROUP,)),
        ("forwards", FORWARD, (MAX_FORWARD,)),
        ("qps", QP, (MAX_QP,)),
        ("avs", AV, (MAX_QP + MAX_AH,)),
        ("cqs", CQ, (MAX_CQ,)),
        ("srqs", SRQ, (MAX_SRQ,)),
        ("mrs", MR, (MAX_MR,)),
        ("mr_stats", MR_STAT, (MAX_MR,)),
        ("spaces", SPACE, (MAX_SPACE,)),
        ("slots", SLOT, (MAX_SLOT,)),
        ("waits", WAIT, (2 * MAX_QP,)),
        ("wqes", WQE, (SQ_ENTRIES,)),
        ("rwqes", RWQE, (RQ_ENTRIES,)),
        ("sges", SGE, (SGE_ENTRIES,)),
        ("cqes", CQE, (CQ_ENTRIES,)),
        ("rd_res", RD_RES, (RD_ENTRIES,)),
        ("events", EVENT, (EVENT_ENTRIES,)),
        ("qpn_hash", HASH, (HASH_QPN,)),
        ("key_hash", HASH, (HASH_KEY,)),
        ("fwd_frames", FRAME, (FORWARD_SLOTS,)),
        ("fwd_slab", "u1", (FORWARD_SLOTS * FRAME_STRIDE,)),
    ]
)


def make_engine() -> np.ndarray:
    """An empty engine: an array of one ENGINE record, its free links set to -1."""
    engs = np.zeros(1, ENGINE)
    eng = engs[0]
    eng["base"] = engs.ctypes.data
    eng["sched_head"] = eng["sched_tail"] = -1
    eng["tx_slot"] = -1
    eng["wheel"][:] = -1
    return engs


def _offset(field: str) -> int:
    fields: Any = ENGINE.fields
    return int(fields[field][1])


OFF_DOORBELLS = _offset("doorbells")
OFF_IOV = _offset("iov")
OFF_WORD = _offset("word")
OFF_DOORBELL_ANY = _offset("doorbell_any")
