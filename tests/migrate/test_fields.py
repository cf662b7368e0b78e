"""Every field of every record is migrated, derived from what is, or of no meaning elsewhere; a new one must say which.

Migrated: its value is in the saved state, as such or as the number of the object it names. Derived: load makes it,
from other values or as a place in the new tables. Transient: the new device starts with its own.
"""

from __future__ import annotations

import numpy as np
import pytest

from softrnic import layout

MIGRATED = {
    "AV": "gid_index pdn valid",
    "GID": "ip mac vlan valid",
    "GROUP": "ip",
    "WQE": "wr_id opcode flags num_sge state status length remote_addr rkey imm compare_add swap ah dqpn qkey "
    "first_psn last_psn ssn bind_mr access",
    "RWQE": "wr_id num_sge",
    "SGE": "addr length lkey",
    "CQE": "wr_id status opcode vendor_err byte_len imm qpn src_qp wc_flags",
    "CQ": "armed state cqn",
    "SRQ": "sge_max limit pdn state srqn",
    "RD_RES": "first_psn last_psn start_psn cur_psn end_psn state atomic msn key va length stop orig",
    "QP": "qpn dqpn type state qkey pdn sq_cur sq_hi sq_sge_max sq_sig_all retry_cnt rnr_retry timeout req_off req_psn "
    "req_hi_psn una_psn ssn limit_ssn credits_valid retry_left rnr_left req_wait gap_psn gap_valid max_rd_atomic "
    "srtt rttvar unacked_req scq epsn msn resp_op nak_sent ack_state ack_syndrome resp_wqe min_rnr_timer "
    "max_dest_rd_atomic ack_psn access resp_va resp_resid resp_off resp_key resp_wr_id resp_nsge rcq srq rq_sge_max "
    "rd_head rd_done max_inline rnr_fault_timer sqd_notified comm_est last_wqe gid_index pmtu resume_to rnr_left_ns "
    "stop",
    "MR": "key kind valid access pdn iova length parent qp odp ranges",
    "SPACE": "paged page_shift",
    "SLOT": "addr length",
    "EVENT": "type index",
    "ENGINE": "gids qps avs cqs srqs mrs wqes rwqes sges cqes rd_res events counters spaces slots groups",
}
DERIVED = {
    "AV": "hdr hdr_len l3_off is_v6 icrc_base ip_csum",  # from the path and the GID
    "GID": "func",
    "GROUP": "qp valid",
    "RWQE": "length",
    "CQ": "prod cons base mask",
    "SRQ": "prod head base mask sge_base",
    "RD_RES": "mr",  # looked up again by its key
    "QP": "func pkey sq_prod sq_head sq_base sq_mask sq_sge_base rd_out resp_mr resp_len resp_sge_base rq_prod rq_head "
    "rq_base rq_mask rq_sge_base rd_base rd_mask rd_tail deadline src_ip dst_ip port",
    "MR": "addr space nranges windows func pinned shift skew held",
    "SPACE": "kind plain first npages slot_first nslots",
    "SLOT": "host pid readonly",
    "ENGINE": "base ngid ngroup event_prod event_cons qpn_hash key_hash",
}
TRANSIENT = {
    "CQ": "func",
    "SRQ": "func",
    # where a peer has moved is followed at once; the window and the timing of round trips belong to a path; the run
    # queue, the wheel and faults to an engine; and how a QP was suspended ends with the suspension
    "QP": "sched sched_next fault cwnd cwnd_credit ssthresh rtt_psn rtt_valid rtt_at rtt_min ahead_psn probes probe "
    "progress_at resp_se timer timer_slot timer_next timer_prev wheel_at quiet hold hold_timer fault_tries fault_psn "
    "moved_ip moved_mac",
    "MR_STAT": "page_faults page_faults_handled page_invalidations page_invalidations_handled page_prefetch",
    "WAIT": "space next prev addr",
    "EVENT": "arg length mr flags",  # only of missing pages, which are noted anew
    # what is present and what was written begins anew
    "MR": "hint",
    "SPACE": "tracking present writable refused dirty_shift wait_head dirty_first dirty_pages dirty dirty_blocks zeros "
    "slot_hint",
    "FRAME": "off len seg flags func",
    "HASH": "key value",
    "ENGINE": "now sched_head sched_tail max_frame max_segs tx_slot tx_seg tx_nseg tx_av tx_n tx_slots tx_end asleep "
    "fault_space fault_flags fault_addr fault_mr fault_len iov word wheel_now wheel_bits wheel doorbells doorbell_any "
    "waits mr_stats nforward forwards fwd_prod fwd_cons fwd_frames fwd_slab",
    "FORWARD": "ip here mac via vlan until left packets valid",  # of what has left, not of what comes
}

RECORDS = {name: value for name, value in vars(layout).items() if isinstance(value, np.dtype) and value.names}


def classes(record: str) -> list[str]:
    return [name for table in (MIGRATED, DERIVED, TRANSIENT) for name in table.get(record, "").split()]


@pytest.mark.parametrize("record", sorted(RECORDS))
def test_every_field_is_classified_once(record: str) -> None:
    fields, named = list(RECORDS[record].names or ()), classes(record)
    assert sorted(named) == sorted(set(named)), "classified twice"
    assert set(fields) - set(named) == set(), "migrated, derived or transient?"
    assert set(named) - set(fields) == set(), "no longer there"


def test_no_record_is_forgotten() -> None:
    assert set(MIGRATED) | set(DERIVED) | set(TRANSIENT) == set(RECORDS)
