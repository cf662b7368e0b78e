"""Constants of the InfiniBand architecture and of verbs, one enum per field of the specification.

Releases meant by every clause cited in this project: InfiniBand Architecture Specification Volume 1 release 1.6
(IBTA), its Annex A17 (RoCEv2), and the verbs man pages of rdma-core 56. Pure data: no numpy, no numba.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

ROCE_UDP_PORT = 4791  # A17.3.2.2, the IANA port of RoCEv2
DEFAULT_PKEY = 0xFFFF
GSI_QPN = 1
GSI_QKEY = 0x80010000  # 12.4: the well-known Q_Key of QP1
MULTICAST_QPN = 0xFFFFFF
PSN_MASK = 0xFFFFFF
QPN_MASK = 0xFFFFFF
MAX_MESSAGE = 1 << 31  # 9.7.7.1.3, C9-92: 0 to 2^31 bytes
CREDITS_INVALID = 0x1F  # 9.7.7.2.2: an AETH whose credit count is not valid


class Service(IntEnum):
    """Transport service: the three high bits of the BTH opcode (9.2.1)."""

    RC  = 0x00
    UC  = 0x20
    RD  = 0x40
    UD  = 0x60
    CNP = 0x80
    XRC = 0xA0


class QpType(IntEnum):
    """ibv_qp_type."""

    GSI = 1
    RC  = 2
    UC  = 3
    UD  = 4


class Op(IntEnum):
    """Operation: the five low bits of the BTH opcode (9.2.1, table 38)."""

    SEND_FIRST           = 0x00
    SEND_MIDDLE          = 0x01
    SEND_LAST            = 0x02
    SEND_LAST_IMM        = 0x03
    SEND_ONLY            = 0x04
    SEND_ONLY_IMM        = 0x05
    WRITE_FIRST          = 0x06
    WRITE_MIDDLE         = 0x07
    WRITE_LAST           = 0x08
    WRITE_LAST_IMM       = 0x09
    WRITE_ONLY           = 0x0A
    WRITE_ONLY_IMM       = 0x0B
    READ_REQUEST         = 0x0C
    READ_RESPONSE_FIRST  = 0x0D
    READ_RESPONSE_MIDDLE = 0x0E
    READ_RESPONSE_LAST   = 0x0F
    READ_RESPONSE_ONLY   = 0x10
    ACKNOWLEDGE          = 0x11
    ATOMIC_ACKNOWLEDGE   = 0x12
    COMPARE_SWAP         = 0x13
    FETCH_ADD            = 0x14
    RESYNC               = 0x15
    SEND_LAST_INV        = 0x16
    SEND_ONLY_INV        = 0x17
    RESUME               = 0x19  # not of IBTA: MigrOS (USENIX ATC'21), only between peers that have agreed on it


class AethKind(IntEnum):
    """Bits 6:5 of the AETH syndrome (9.7.5.2.1, table 45)."""

    ACK     = 0
    RNR_NAK = 1
    NAK     = 3


class Nak(IntEnum):
    """NAK code: bits 4:0 of the syndrome of a NAK (9.7.5.2.8, table 46)."""

    PSN_SEQUENCE_ERROR       = 0
    INVALID_REQUEST          = 1
    REMOTE_ACCESS_ERROR      = 2
    REMOTE_OPERATIONAL_ERROR = 3
    INVALID_RD_REQUEST       = 4
    STOPPED                  = 5  # not of IBTA, which has it reserved: as RESUME


# RNR NAK timer field to microseconds (9.7.5.2.8, table 47).
RNR_TIMER_US = (
    655360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920,
    2560, 3840, 5120, 7680, 10240, 15360, 20480, 30720, 40960, 61440, 81920, 122880,
    163840, 245760, 327680, 491520,
)  # fmt: skip
RNR_RETRY_INFINITE = 7  # 11.2.5.2: an RNR retry count of 7 never runs out


def ack_timeout_ns(timeout: int) -> int:
    """Local ACK timeout in ns: 4.096 us * 2^timeout; 0 means no timeout (9.9.1.1)."""
    return 4096 << timeout if timeout else 0


class Mtu(IntEnum):
    """ibv_mtu."""

    MTU_256  = 1
    MTU_512  = 2
    MTU_1024 = 3
    MTU_2048 = 4
    MTU_4096 = 5

    @property
    def bytes(self) -> int:
        """Payload bytes of a full packet."""
        return 128 << self.value


class QpState(IntEnum):
    """ibv_qp_state, and SUSPENDED: a QP taken off the wire with its state whole."""

    RESET     = 0
    INIT      = 1
    RTR       = 2
    RTS       = 3
    SQD       = 4
    SQE       = 5
    ERR       = 6
    SUSPENDED = 7


class Access(IntFlag):
    """ibv_access_flags."""

    LOCAL_WRITE   = 1 << 0
    REMOTE_WRITE  = 1 << 1
    REMOTE_READ   = 1 << 2
    REMOTE_ATOMIC = 1 << 3
    MW_BIND       = 1 << 4
    ZERO_BASED    = 1 << 5
    ON_DEMAND     = 1 << 6


class OdpGeneral(IntFlag):
    """ibv_odp_general_caps."""

    SUPPORT          = 1 << 0
    SUPPORT_IMPLICIT = 1 << 1


class OdpSupport(IntFlag):
    """ibv_odp_transport_cap_bits: what may touch on-demand memory."""

    SEND     = 1 << 0
    RECV     = 1 << 1
    WRITE    = 1 << 2
    READ     = 1 << 3
    ATOMIC   = 1 << 4
    SRQ_RECV = 1 << 5


class WrOpcode(IntEnum):
    """ibv_wr_opcode, and fast registration (IB_WR_REG_MR), which only kernel verbs name."""

    RDMA_WRITE           = 0
    RDMA_WRITE_WITH_IMM  = 1
    SEND                 = 2
    SEND_WITH_IMM        = 3
    RDMA_READ            = 4
    ATOMIC_CMP_AND_SWP   = 5
    ATOMIC_FETCH_AND_ADD = 6
    LOCAL_INV            = 7
    BIND_MW              = 8
    SEND_WITH_INV        = 9
    REG_MR               = 32


class SendFlags(IntFlag):
    """ibv_send_flags."""

    FENCE     = 1 << 0
    SIGNALED  = 1 << 1
    SOLICITED = 1 << 2
    INLINE    = 1 << 3


class WcStatus(IntEnum):
    """ibv_wc_status."""

    SUCCESS            = 0
    LOC_LEN_ERR        = 1
    LOC_QP_OP_ERR      = 2
    LOC_EEC_OP_ERR     = 3
    LOC_PROT_ERR       = 4
    WR_FLUSH_ERR       = 5
    MW_BIND_ERR        = 6
    BAD_RESP_ERR       = 7
    LOC_ACCESS_ERR     = 8
    REM_INV_REQ_ERR    = 9
    REM_ACCESS_ERR     = 10
    REM_OP_ERR         = 11
    RETRY_EXC_ERR      = 12
    RNR_RETRY_EXC_ERR  = 13
    LOC_RDD_VIOL_ERR   = 14
    REM_INV_RD_REQ_ERR = 15
    REM_ABORT_ERR      = 16
    INV_EECN_ERR       = 17
    INV_EEC_STATE_ERR  = 18
    FATAL_ERR          = 19
    RESP_TIMEOUT_ERR   = 20
    GENERAL_ERR        = 21


WC_STATUS_TEXT = {
    WcStatus.SUCCESS:           "success",
    WcStatus.LOC_LEN_ERR:       "local length error",
    WcStatus.LOC_QP_OP_ERR:     "local QP operation error",
    WcStatus.LOC_EEC_OP_ERR:    "local EE context operation error",
    WcStatus.LOC_PROT_ERR:      "local protection error",
    WcStatus.WR_FLUSH_ERR:      "Work Request Flushed Error",
    WcStatus.MW_BIND_ERR:       "memory management operation error",
    WcStatus.BAD_RESP_ERR:      "bad response error",
    WcStatus.LOC_ACCESS_ERR:    "local access error",
    WcStatus.REM_INV_REQ_ERR:   "remote invalid request error",
    WcStatus.REM_ACCESS_ERR:    "remote access error",
    WcStatus.REM_OP_ERR:        "remote operation error",
    WcStatus.RETRY_EXC_ERR:     "transport retry counter exceeded",
    WcStatus.RNR_RETRY_EXC_ERR: "RNR retry counter exceeded",
    WcStatus.FATAL_ERR:         "fatal error",
    WcStatus.GENERAL_ERR:       "general error",
}  # fmt: skip


class WcOpcode(IntEnum):
    """ibv_wc_opcode."""

    SEND               = 0
    RDMA_WRITE         = 1
    RDMA_READ          = 2
    COMP_SWAP          = 3
    FETCH_ADD          = 4
    BIND_MW            = 5
    LOCAL_INV          = 6
    REG_MR             = 32
    RECV               = 128
    RECV_RDMA_WITH_IMM = 129


class WcFlags(IntFlag):
    """ibv_wc_flags."""

    GRH      = 1 << 0
    WITH_IMM = 1 << 1
    WITH_INV = 1 << 4


class EventType(IntEnum):
    """ibv_event_type; from CQ_NOTIFY on, the engine's own signals to its control plane."""

    CQ_ERR              = 0
    QP_FATAL            = 1
    QP_REQ_ERR          = 2
    QP_ACCESS_ERR       = 3
    COMM_EST            = 4
    SQ_DRAINED          = 5
    PATH_MIG            = 6
    PATH_MIG_ERR        = 7
    DEVICE_FATAL        = 8
    PORT_ACTIVE         = 9
    PORT_ERR            = 10
    LID_CHANGE          = 11
    PKEY_CHANGE         = 12
    SM_CHANGE           = 13
    SRQ_ERR             = 14
    SRQ_LIMIT_REACHED   = 15
    QP_LAST_WQE_REACHED = 16
    CLIENT_REREGISTER   = 17
    GID_CHANGE          = 18
    CQ_NOTIFY           = 64
    PAGE_FAULT          = 65
