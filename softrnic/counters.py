"""One row per counter: its index, its name as rxe or mlx5 has it, its Prometheus stem and its help.

Counter names are written nowhere else. Kernels add to `eng["counters"][C.NAME]`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class C(IntEnum):
    """Index into ENGINE["counters"]."""

    SENT_PKTS = 0
    RCVD_PKTS = 1
    SENT_BYTES = 2
    RCVD_BYTES = 3
    DUPLICATE_REQUEST = 4
    OUT_OF_SEQ_REQUEST = 5
    RCVD_RNR_ERR = 6
    SEND_RNR_ERR = 7
    RCVD_SEQ_ERR = 8
    SEND_SEQ_ERR = 9
    ACK_DEFERRED = 10
    RETRY_EXCEEDED_ERR = 11
    RETRY_RNR_EXCEEDED_ERR = 12
    COMPLETER_RETRY_ERR = 13
    IMPLIED_NAK_SEQ_ERR = 14
    LOCAL_ACK_TIMEOUT_ERR = 15
    RDMA_SENDS = 16
    RDMA_RECVS = 17
    RETRANSMITTED_PKTS = 18
    RX_WRITE_REQUESTS = 19
    RX_READ_REQUESTS = 20
    RX_ATOMIC_REQUESTS = 21
    SENT_FRAMES = 22
    RCVD_FRAMES = 23
    # packets dropped, one counter per reason
    DROP_NOT_ROCE = 24
    DROP_MALFORMED = 25
    DROP_ICRC = 26
    DROP_ADDRESS = 27
    DROP_BTH = 28
    DROP_PKEY = 29
    DROP_QPN = 30
    DROP_OPCODE = 31
    DROP_STATE = 32
    DROP_PEER = 33
    DROP_QKEY = 34
    DROP_LENGTH = 35
    DROP_NO_RECV = 36
    DROP_UC_SEQ = 37
    DROP_GHOST_ACK = 38
    DROP_RD_ATOMIC_REPLAY = 39
    DROP_NAK_SENT = 40
    DROP_SUSPENDED = 41
    DROP_UC_ACCESS = 42
    DROP_FORWARD = 43
    FORWARDED_PKTS = 44
    DROP_PAGE_FAULT = 45
    # errors reported
    SEND_INVALID_REQUEST_ERR = 48
    SEND_REMOTE_ACCESS_ERR = 49
    SEND_REMOTE_OP_ERR = 50
    RCVD_REMOTE_ERR = 51
    CQE_ERROR = 52
    CQ_OVERRUN = 53
    BAD_RESPONSE = 54
    EVENTS_LOST = 55
    # stopping and resuming
    SEND_STOP = 56
    RCVD_STOP = 57
    SEND_RESUME = 58
    RCVD_RESUME = 59
    # memory
    PAGE_FAULTS = 64
    PAGE_FAULTS_HANDLED = 65
    PAGE_INVALIDATIONS = 66
    PAGE_PREFETCH = 67
    PAGE_INVALIDATIONS_HANDLED = 70
    HOLE_READS = 68
    HOLE_WRITES = 69


class CounterRow(NamedTuple):
    """A counter as it is shown: index, name in rdma(8), Prometheus name, help."""

    counter: C
    name: str
    prometheus: str
    text: str


def _row(index: C, prometheus: str, text: str) -> CounterRow:
    return CounterRow(index, index.name.lower(), f"softrnic_{prometheus}_total", text)


COUNTERS: tuple[CounterRow, ...] = (
    _row(C.SENT_PKTS, "port_packets_transmitted", "RoCEv2 packets sent"),
    _row(C.RCVD_PKTS, "port_packets_received", "RoCEv2 packets received with a valid ICRC"),
    _row(C.SENT_BYTES, "port_data_transmitted_bytes", "bytes of IP packets sent"),
    _row(C.RCVD_BYTES, "port_data_received_bytes", "bytes of IP packets received"),
    _row(C.SENT_FRAMES, "port_frames_transmitted", "frames handed to the port; a super-frame counts once"),
    _row(C.RCVD_FRAMES, "port_frames_received", "frames taken from the port; a super-frame counts once"),
    _row(C.DUPLICATE_REQUEST, "duplicate_requests_packets", "requests seen before"),
    _row(C.OUT_OF_SEQ_REQUEST, "out_of_sequence_packets_received", "requests ahead of the expected PSN"),
    _row(C.RCVD_RNR_ERR, "rnr_nak_retry_packets_received", "RNR NAKs received"),
    _row(C.SEND_RNR_ERR, "rnr_nak_packets_sent", "RNR NAKs sent"),
    _row(C.RCVD_SEQ_ERR, "packet_sequence_errors", "NAKs for a PSN sequence error received"),
    _row(C.SEND_SEQ_ERR, "packet_sequence_errors_sent", "NAKs for a PSN sequence error sent"),
    _row(C.ACK_DEFERRED, "acks_deferred", "acknowledgements folded into a later one"),
    _row(C.RETRY_EXCEEDED_ERR, "retry_exceeded_errors", "work requests failed for want of an answer"),
    _row(C.RETRY_RNR_EXCEEDED_ERR, "retry_rnr_exceeded_errors", "work requests failed by RNR NAKs"),
    _row(C.COMPLETER_RETRY_ERR, "completer_retries", "go-back-N rewinds for any reason"),
    _row(C.IMPLIED_NAK_SEQ_ERR, "implied_nak_seq_errors", "lost responses noticed by a later one"),
    _row(C.LOCAL_ACK_TIMEOUT_ERR, "local_ack_timeout_errors", "acknowledgement timeouts"),
    _row(C.RDMA_SENDS, "rdma_sends", "send messages completed"),
    _row(C.RDMA_RECVS, "rdma_recvs", "receive messages completed"),
    _row(C.RETRANSMITTED_PKTS, "retransmitted_packets", "request packets sent again"),
    _row(C.RX_WRITE_REQUESTS, "rx_write_requests", "RDMA WRITE messages received"),
    _row(C.RX_READ_REQUESTS, "rx_read_requests", "RDMA READ requests received"),
    _row(C.RX_ATOMIC_REQUESTS, "rx_atomic_requests", "atomic requests received"),
    _row(C.DROP_NOT_ROCE, "drop_not_roce", "frames that are not UDP 4791"),
    _row(C.DROP_MALFORMED, "drop_malformed", "frames cut short, fragmented or with wrong lengths"),
    _row(C.DROP_ICRC, "rx_icrc_encapsulated_errors", "packets with a wrong ICRC"),
    _row(C.DROP_ADDRESS, "drop_address", "packets for an address that is not ours"),
    _row(C.DROP_BTH, "drop_bth", "packets with a wrong header version or an impossible length"),
    _row(C.DROP_PKEY, "drop_pkey", "packets of another partition"),
    _row(C.DROP_QPN, "drop_qpn", "packets for a QP that does not exist"),
    _row(C.DROP_OPCODE, "drop_opcode", "packets of another transport or with a reserved opcode"),
    _row(C.DROP_STATE, "drop_state", "packets for a QP in a state that does not take them"),
    _row(C.DROP_PEER, "drop_peer", "packets that do not come from the connected peer"),
    _row(C.DROP_QKEY, "drop_qkey", "datagrams with a wrong Q_Key"),
    _row(C.DROP_LENGTH, "drop_length", "datagrams larger than the receive buffer or the path MTU"),
    _row(C.DROP_NO_RECV, "resources_exceeded", "UC and UD packets with no receive posted"),
    _row(C.DROP_UC_SEQ, "drop_uc_sequence", "UC packets of a message that lost one"),
    _row(C.DROP_UC_ACCESS, "drop_uc_access", "UC writes that are not permitted"),
    _row(C.DROP_PAGE_FAULT, "drop_page_fault", "UC and UD packets lost because a page was not present"),
    _row(C.DROP_GHOST_ACK, "drop_ghost_ack", "responses outside the window"),
    _row(C.DROP_RD_ATOMIC_REPLAY, "drop_rd_atomic_replay", "duplicate READs and atomics no longer known"),
    _row(C.DROP_NAK_SENT, "drop_nak_sent", "requests ignored until the one that was NAKed comes again"),
    _row(C.DROP_SUSPENDED, "drop_suspended", "packets for a suspended QP"),
    _row(C.DROP_FORWARD, "drop_forward", "packets for an address that has moved, not sent on: loop, budget, full ring"),
    _row(C.FORWARDED_PKTS, "forwarded_packets", "packets for an address that has moved, sent on to its new place"),
    _row(C.SEND_INVALID_REQUEST_ERR, "invalid_request_errors_sent", "NAKs for an invalid request sent"),
    _row(C.SEND_REMOTE_ACCESS_ERR, "remote_access_errors_sent", "NAKs for a remote access error sent"),
    _row(C.SEND_REMOTE_OP_ERR, "remote_operational_errors_sent", "NAKs for a remote operational error sent"),
    _row(C.RCVD_REMOTE_ERR, "remote_errors_received", "fatal NAKs received"),
    _row(C.CQE_ERROR, "cqe_errors", "completions with an error status"),
    _row(C.CQ_OVERRUN, "cq_overruns", "completions lost because a CQ was full"),
    _row(C.BAD_RESPONSE, "bad_responses", "responses that contradict the request"),
    _row(C.EVENTS_LOST, "events_lost", "asynchronous events lost because nobody fetched them"),
    _row(C.SEND_STOP, "stop_naks_sent", "NAKs that say we are suspended sent"),
    _row(C.RCVD_STOP, "stop_naks_received", "NAKs that say the peer is suspended received"),
    _row(C.SEND_RESUME, "resumes_sent", "packets sent that say we go on"),
    _row(C.RCVD_RESUME, "resumes_received", "packets received that say the peer goes on"),
    _row(C.PAGE_FAULTS, "page_faults", "accesses to a page that was not present"),
    _row(C.PAGE_FAULTS_HANDLED, "page_faults_handled", "page faults resolved"),
    _row(C.PAGE_INVALIDATIONS, "page_invalidations", "pages that were to be taken from the device"),
    _row(C.PAGE_INVALIDATIONS_HANDLED, "page_invalidations_handled", "pages that the device had and gave up"),
    _row(C.PAGE_PREFETCH, "page_prefetch", "pages made present by advice"),
    _row(C.HOLE_READS, "hole_reads", "reads of a hole in an address space"),
    _row(C.HOLE_WRITES, "hole_writes", "writes to a hole in an address space"),
)
