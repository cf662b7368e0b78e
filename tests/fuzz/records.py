"""What the fuzzer keeps: its records, and what it can find. No behaviour."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from softrnic.layout import QP, FrameRing
from tests.sim.chance import CHANCE

QP_BYTES = QP.itemsize
KEPT = 8  # answers of an epoch that are read again by another codec
KEPT_BYTES = 8192


class Verdict(IntEnum):
    """What a frame may have brought to light."""

    NONE        = 0
    CANARY      = 1  # memory changed that nobody may write
    BYSTANDER   = 2  # the record of another QP changed
    FORM        = 3  # an answer that is not a well-formed packet for the peer
    OPCODE      = 4  # an answer that this type of QP does not give in this state
    WINDOW      = 5  # a request outside of the window of what was posted
    TOO_MANY    = 6  # more answers than the frame asked for
    ACK_PSN     = 7  # an ACK not for the last packet taken, or a NAK not for the expected one
    MSN         = 8  # a message number that is not that of the responder
    SYNDROME    = 9  # a reserved syndrome, credits that are not there, or a timer nobody set
    NAK_TWICE   = 10  # a second sequence NAK before the packet it asked for
    READ_RANGE  = 11  # a READ response without the right to read
    READ_DATA   = 12  # a READ response with other bytes than the memory's
    EPSN        = 13  # the expected PSN moved by a packet that was not expected, or too far
    STRAY_WRITE = 14  # memory changed by a packet that must not change any
    CQE         = 15  # a completion out of order, impossible, or one too many
    INVARIANT   = 16  # a rule of tests/sim/invariants.py; `detail` says which
    UNCOUNTED   = 17  # the packet left no trace, not even in a counter
    ENDLESS     = 18  # the engine has ever more to send
    TAKEN       = 19  # a request was executed that must be refused; `detail`: 1 state, 2 order, 3 length, 4 right


FUZZ = np.dtype(
    [
        *CHANCE.descr,
        # the QP under fuzz
        ("qp", "i8"),
        ("bystander", "i8"),
        ("srq", "i8"),
        ("scq", "i8"),
        ("rcq", "i8"),
        ("start", "i8"),  # QpState it is fuzzed in
        ("hold", "i8"),  # Hold of a SUSPENDED one
        ("service", "i8"),
        ("qkey", "i8"),
        # the frames
        ("hdr_len", "i8"),
        ("l3", "i8"),
        ("is_v6", "i8"),
        ("burst", "i8"),  # frames per receive
        ("every", "i8"),  # frames between looks at all memory
        ("bth", "i8"),  # of the last frame built, in the slab of rx
        ("packet_len", "i8"),
        ("nseg", "i8"),
        # the state of the run
        ("now", "i8"),
        ("frames", "i8"),
        ("age", "i8"),  # frames since the last restart
        ("restarts", "i8"),
        ("answers", "i8"),
        ("kept", "i8"),
        ("send_seen", "i8"),
        ("recv_seen", "i8"),
        ("send_failed", "i8"),
        ("nak_psn", "i8"),  # sequence NAK sent for this PSN; -1: none
        # what the current frame has brought so far
        ("state0", "i8"),
        ("epsn0", "i8"),
        ("resp_op0", "i8"),
        ("begun0", "i8"),  # one past the last PSN of the messages begun
        ("packets", "i8"),  # in the frames of this burst
        ("acks", "i8"),
        ("reads", "i8"),
        ("atomics", "i8"),
        ("successes", "i8"),
        ("verdict", "i8"),
        ("detail", "i8"),
        # coverage
        ("sent_ops", "i8", (32,)),
        ("sent_kinds", "i8", (4,)),  # ACK, RNR NAK, -, NAK
        ("sent_naks", "i8", (8,)),
        ("send_status", "i8", (24,)),
        ("recv_status", "i8", (24,)),
        ("in_ops", "i8", (256,)),
    ]
)

# What peers may do where. `host`: address of the memory; `iova`: on-wire address; `rights`: Access bits.
REGION = np.dtype([("key", "i8"), ("iova", "i8"), ("host", "i8"), ("length", "i8"), ("rights", "i8"), ("mr", "i8")])

# A stretch of the arena that nothing may ever write.
CANARY = np.dtype([("offset", "i8"), ("length", "i8")])


class World(NamedTuple):
    """Everything the kernels work on."""

    engs: np.ndarray
    fz: np.ndarray  # FUZZ[1]
    rx: FrameRing
    tx: FrameRing
    header: np.ndarray  # Ethernet to UDP as the peer sends it
    noise: np.ndarray  # payload comes from here
    regions: np.ndarray  # REGION
    canaries: np.ndarray  # CANARY
    arena: np.ndarray
    picture: np.ndarray  # of the arena when the epoch began
    shadow: np.ndarray  # of the arena before the frame under examination
    saved: np.ndarray  # QP records as verbs made them: the one under fuzz, the bystander, the one before the frame
    saved_mrs: np.ndarray  # MR records of `regions`
    kept: np.ndarray  # KEPT frames: 4 bytes of length, then the frame
