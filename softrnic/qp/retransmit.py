"""Loss recovery of the requester: go-back-N rewind, retry budgets, timers, the window (IBTA 9.7.5.2.8, 9.9).

Decides when and from where to send again; the requester then simply goes on from there.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import frozen, i64, inline
from softrnic.layout import PageWait, Probe, ReqWait, TimerKind, WqeState
from softrnic.qp.finish import fail_send
from softrnic.qp.psn import psn_diff
from softrnic.qp.sched import schedule
from softrnic.qp.timer import start_timer, stop_timer
from softrnic.spec import RNR_RETRY_INFINITE, RNR_TIMER_US, QpState, WcStatus, WrOpcode

CWND_MIN = 16  # packets
PROBE_ANSWER_MAX = 16  # packets a peer may be made to send twice on mere suspicion
PROBE_MIN_NS = 50_000  # a peer that sleeps needs about that to wake up
CWND_START = 256
CWND_MAX = 1024

STOP_POLL_NS = 250_000_000  # how often a peer that said it is stopped is asked again; it costs no retry
RESUME_MIN_NS = 2_000_000  # after which a RESUME is sent again, doubling up to STOP_POLL_NS

_RNR_NS = frozen([us * 1000 for us in RNR_TIMER_US], "i8")


@inline
def _probe_ns(qp):
    """How long an acknowledgement may take before we ask: about a round trip, if that is known, doubling each time."""
    full = 4096 << i64(qp["timeout"])
    srtt = i64(qp["srtt"])
    if srtt == 0:
        return full
    rto = max(PROBE_MIN_NS, srtt + max(4 * i64(qp["rttvar"]), srtt >> 3))  # RFC 6298 (2.3)
    return min(full, rto << min(i64(qp["probes"]), 20))


@inline
def _probe_at(eng, qp):
    """When to ask. The packet that is being timed was sent after the oldest one: if even its acknowledgement is
    overdue, something is lost, whatever came in between. What has just come in is given an eighth of that to go on.
    """
    now, rto = i64(eng["now"]), _probe_ns(qp)
    if qp["rtt_valid"] and qp["probes"] == 0 and i64(qp["srtt"]):
        return max(i64(qp["rtt_at"]) + rto, now + (rto >> 3))
    return now + rto


@inline
def _may_probe(eng, qp):
    """Whether asking early is cheap.

    It is one packet, unless the oldest request is a READ or an atomic: then all that is outstanding is asked for
    again, and a peer that was merely slow answers all of it twice, which makes it slower. If a response is known to
    be lost, the peer is not merely slow: it was asked again, and that may be what is lost now.
    """
    if psn_diff(i64(qp["req_hi_psn"]), i64(qp["una_psn"])) <= PROBE_ANSWER_MAX or qp["gap_valid"]:
        return True
    return not _oldest_wants_data(eng, qp)


@inline
def _oldest_wants_data(eng, qp):
    """Whether the oldest request is a READ or an atomic."""
    opcode = eng["wqes"][i64(qp["sq_base"]) + (i64(qp["sq_head"]) & i64(qp["sq_mask"]))]["opcode"]
    return (
        opcode == WrOpcode.RDMA_READ
        or opcode == WrOpcode.ATOMIC_CMP_AND_SWP
        or opcode == WrOpcode.ATOMIC_FETCH_AND_ADD
    )


@inline
def arm_ack_timer(eng, qp, qp_index):
    """(Re)start the local ACK timer while anything is unanswered, else stop it (9.9.1.1)."""
    if qp["req_wait"] != ReqWait.NONE:
        return
    if qp["una_psn"] == qp["req_hi_psn"]:
        stop_timer(qp)
    elif qp["timeout"]:
        due = i64(qp["progress_at"]) + (4096 << i64(qp["timeout"]))
        if _may_probe(eng, qp):
            due = min(due, _probe_at(eng, qp))
        start_timer(eng, qp, qp_index, TimerKind.ACK, due)


@inline
def note_life(eng, qp, qp_index):
    """The peer is busy answering what was asked for twice; what is waited for comes behind that."""
    qp["progress_at"] = eng["now"]
    arm_ack_timer(eng, qp, qp_index)


@inline
def _time_round_trip(eng, qp):
    """Take a sample if the packet being timed is acknowledged; never of one sent twice (Karn).

    A sample, or a NAK, ends the doubling: a peer so slow that every packet is asked for again would else never be
    known so.
    """
    if qp["rtt_valid"] and psn_diff(i64(qp["una_psn"]), i64(qp["rtt_psn"])) > 0:
        qp["rtt_valid"] = 0
        qp["probes"] = 0
        sample = max(1, i64(eng["now"]) - i64(qp["rtt_at"]))
        srtt = i64(qp["srtt"])
        qp["rtt_min"] = sample if i64(qp["rtt_min"]) == 0 else min(sample, i64(qp["rtt_min"]))
        if srtt == 0:
            qp["srtt"] = sample
            qp["rttvar"] = sample >> 1
            return
        rttvar = i64(qp["rttvar"])
        qp["rttvar"] = rttvar + ((abs(sample - srtt) - rttvar) >> 2)
        qp["srtt"] = max(1, srtt + ((sample - srtt) >> 3))


@inline
def _open_window(qp, npsn):
    """Slow start below ssthresh, then an eighth of the window per window."""
    cwnd = i64(qp["cwnd"])
    if cwnd >= CWND_MAX:
        return
    if cwnd < i64(qp["ssthresh"]):
        qp["cwnd"] = min(CWND_MAX, cwnd + npsn)
        return
    credit = i64(qp["cwnd_credit"]) + npsn
    if credit >= cwnd:
        credit = 0
        qp["cwnd"] = min(CWND_MAX, cwnd + (cwnd >> 3) + 1)
    qp["cwnd_credit"] = credit


@inline
def _probe_answered(eng, qp, qp_index, npsn):
    """The peer acknowledged `npsn` packets after a probe, and not all that was sent before it."""
    if npsn == 1:
        # only the probe was missing so far: what followed it is lost or thrown away, as a NAK on its way may say too
        _shrink_window(qp)
        rewind(eng, qp, qp_index)
        qp["gap_valid"] = 1
        qp["gap_psn"] = qp["una_psn"]
        qp["unacked_req"] = CWND_MAX  # asks for an acknowledgement
    elif qp["probes"] == 1:
        # it may be a NAK that was lost, with all that it acknowledged: then the next packet is what the peer lacks
        qp["probe"] = Probe.DUE
        qp["probes"] = 2


@inline
def note_progress(eng, qp, qp_index, npsn):
    """The peer acknowledged `npsn` packets: budgets are whole again and the window opens."""
    qp["retry_left"] = qp["retry_cnt"]
    qp["rnr_left"] = qp["rnr_retry"]
    qp["gap_valid"] = 0
    probed = qp["probe"] == Probe.SENT and qp["una_psn"] != qp["req_hi_psn"]
    qp["probe"] = Probe.NONE
    if probed:
        _probe_answered(eng, qp, qp_index, npsn)
    qp["progress_at"] = eng["now"]
    if i64(qp["req_wait"]) > ReqWait.RNR:
        peer_is_awake(eng, qp, qp_index)
    _time_round_trip(eng, qp)
    _open_window(qp, npsn)
    arm_ack_timer(eng, qp, qp_index)


@inline
def rewind(eng, qp, qp_index):
    """Go back to the oldest unacknowledged packet, which by construction is one of the oldest WQE."""
    head = i64(qp["sq_head"])
    qp["sq_cur"] = head
    qp["req_psn"] = qp["una_psn"]
    qp["rd_out"] = 0
    qp["req_off"] = 0
    qp["unacked_req"] = 0
    qp["rtt_valid"] = 0
    if qp["probe"] == Probe.DUE:
        qp["probe"] = Probe.NONE  # going back sends that packet anyway
    if head < i64(qp["sq_hi"]):
        wqe = eng["wqes"][i64(qp["sq_base"]) + (head & i64(qp["sq_mask"]))]
        if wqe["state"] == WqeState.STARTED:
            qp["req_off"] = psn_diff(i64(qp["una_psn"]), i64(wqe["first_psn"])) * i64(qp["pmtu"])
    eng["counters"][C.COMPLETER_RETRY_ERR] += 1
    schedule(eng, qp, qp_index)


@inline
def _shrink_window(qp):
    """A packet was lost while others got through: half the window, if a queue is what lost it.

    Where round trips take about as long as the shortest did there is no queue. The loss is then a matter of chance, and
    going back costs a round trip whatever the window is; a smaller one would leave the pipe empty after that too.
    """
    if i64(qp["srtt"]) < 2 * i64(qp["rtt_min"]):
        return
    qp["ssthresh"] = max(CWND_MIN, i64(qp["cwnd"]) >> 1)
    qp["cwnd"] = qp["ssthresh"]
    qp["cwnd_credit"] = 0


@inline
def _close_window(qp):
    """A whole window was lost: begin with one packet, double per round trip to where it was."""
    qp["ssthresh"] = max(CWND_MIN, i64(qp["cwnd"]), i64(qp["ssthresh"]) >> 1)
    qp["cwnd"] = 1
    qp["cwnd_credit"] = 0


@inline
def sequence_retry(eng, qp, qp_index):
    """A response or a NAK shows a loss at una_psn: go back once per loss, at the cost of one retry (C9-142)."""
    qp["probes"] = 0  # so the peer is not slow
    if qp["gap_valid"] and qp["gap_psn"] == qp["una_psn"]:
        return
    if qp["retry_left"] == 0:
        eng["counters"][C.RETRY_EXCEEDED_ERR] += 1
        fail_send(eng, qp, qp_index, WcStatus.RETRY_EXC_ERR)
        return
    qp["retry_left"] -= 1
    qp["gap_valid"] = 1
    qp["gap_psn"] = qp["una_psn"]
    qp["progress_at"] = eng["now"]
    go_back(eng, qp, qp_index)


@inline
def _time_from_now(eng, qp):
    """The oldest packet is about to be sent again, and no earlier copy of it can be acknowledged."""
    qp["rtt_valid"] = 1
    qp["rtt_psn"] = qp["una_psn"]
    qp["rtt_at"] = eng["now"]


@inline
def go_back(eng, qp, qp_index):
    """Send again from una_psn on. By itself this spends no retry and leaves the local ACK timeout as it runs."""
    asked = qp["probe"] != Probe.NONE
    _shrink_window(qp)
    rewind(eng, qp, qp_index)
    # The peer has said that it lacks this packet, so what acknowledges it was sent from now on: a round trip that can
    # be timed. Where much is lost there is no other, as everything is sent more than once. Not after a probe, which
    # the peer had not seen when it said so: its acknowledgement would come too soon.
    if not asked:
        _time_from_now(eng, qp)
    qp["unacked_req"] = CWND_MAX  # asks for an acknowledgement
    arm_ack_timer(eng, qp, qp_index)


@inline
def rnr_retry(eng, qp, qp_index, timer_code):
    """An RNR NAK: wait as long as the responder asks, then send again (9.7.5.2.8); 7 retries mean for ever.

    It also shows that the peer is there: what was lost on the way to it is forgotten, or a peer that is not ready
    for long would cost the connection one stray loss at a time.
    """
    eng["counters"][C.RCVD_RNR_ERR] += 1
    if qp["req_wait"] == ReqWait.RNR or qp["req_wait"] == ReqWait.RESUMED:
        return  # said twice, or long ago: nothing was sent since
    if i64(qp["rnr_left"]) == 0 and i64(qp["rnr_retry"]) != RNR_RETRY_INFINITE:
        eng["counters"][C.RETRY_RNR_EXCEEDED_ERR] += 1
        fail_send(eng, qp, qp_index, WcStatus.RNR_RETRY_EXC_ERR)
        return
    if i64(qp["rnr_retry"]) != RNR_RETRY_INFINITE:
        qp["rnr_left"] -= 1
    qp["retry_left"] = qp["retry_cnt"]
    qp["probes"] = 0
    rewind(eng, qp, qp_index)
    qp["req_wait"] = ReqWait.RNR
    start_timer(eng, qp, qp_index, TimerKind.RNR, i64(eng["now"]) + _RNR_NS[timer_code])


@inline
def peer_has_stopped(eng, qp, qp_index):
    """NAK 5: wait, at the cost of nothing, until the peer resumes (MigrOS); ask now and then, should we miss it."""
    eng["counters"][C.RCVD_STOP] += 1
    if qp["req_wait"] == ReqWait.RESUMED:
        return  # we have something to say ourselves, until it is heard
    qp["retry_left"] = qp["retry_cnt"]
    qp["rnr_left"] = qp["rnr_retry"]
    qp["probes"] = 0
    rewind(eng, qp, qp_index)
    qp["req_wait"] = ReqWait.STOPPED
    start_timer(eng, qp, qp_index, TimerKind.STOP, i64(eng["now"]) + STOP_POLL_NS)


@inline
def peer_is_awake(eng, qp, qp_index):
    """Whatever we waited for of the peer, it is there: go on from the oldest unacknowledged packet.

    Before our RESUME has left, it is there and has not yet heard of it.
    """
    if qp["req_wait"] == ReqWait.RESUMED and qp["timer"] != TimerKind.STOP:
        return
    qp["req_wait"] = ReqWait.NONE
    stop_timer(qp)
    qp["probe"] = Probe.NONE
    qp["probes"] = 0
    qp["progress_at"] = eng["now"]
    rewind(eng, qp, qp_index)


@inline
def resume_interval_ns(qp):
    """When to send a RESUME once more."""
    return min(STOP_POLL_NS, RESUME_MIN_NS << min(i64(qp["probes"]), 10))


@inline
def resume_rnr_wait(eng, qp, qp_index):
    """The RNR wait of a QP brought here from elsewhere goes on from the first moment it may send."""
    if qp["req_wait"] == ReqWait.RNR and qp["timer"] == TimerKind.NONE:
        start_timer(eng, qp, qp_index, TimerKind.RNR, i64(eng["now"]) + i64(qp["rnr_left_ns"]))
        qp["rnr_left_ns"] = 0


@inline
def _ask_early(eng, qp, qp_index):
    """Send the oldest packet again, and only that: if the peer was merely slow, it is all that was in vain.

    A peer that has said NAK is not slow: the packet it lacks is lost once more, and it throws away what follows. So all
    of that is sent again, once.
    """
    qp["rtt_valid"] = 0  # of two copies, nobody knows which is acknowledged (Karn)
    wants_data = _oldest_wants_data(eng, qp)
    if qp["gap_valid"] and qp["probes"] == 0 and not wants_data:
        rewind(eng, qp, qp_index)
        qp["unacked_req"] = CWND_MAX  # asks for an acknowledgement
        return
    qp["probe"] = Probe.DUE
    schedule(eng, qp, qp_index)
    if not wants_data:
        qp["gap_valid"] = 0  # a NAK is news again; what a late response shows is still the same gap


@inline
def expire(eng, qp, qp_index):
    """The QP's timer has run out.

    Before the local ACK timeout is over this is only a probe, to learn where the peer stands, and no retry is spent.
    When it is over, one retry is spent and the requester goes back (9.9.1.1, C9-141).
    """
    kind = i64(qp["timer"])
    stop_timer(qp)
    if kind == TimerKind.RNR:
        qp["req_wait"] = ReqWait.NONE
        schedule(eng, qp, qp_index)
        return
    if kind == TimerKind.STOP:
        qp["probe"] = Probe.DUE
        if qp["req_wait"] == ReqWait.STOPPED:
            start_timer(eng, qp, qp_index, TimerKind.STOP, i64(eng["now"]) + STOP_POLL_NS)
        schedule(eng, qp, qp_index)
        return
    if (qp["state"] != QpState.RTS and qp["state"] != QpState.SQD) or qp["quiet"] or qp["timeout"] == 0:
        return
    if i64(qp["fault"]) & PageWait.REQUESTER.value:  # it is us who are late
        qp["progress_at"] = eng["now"]
        arm_ack_timer(eng, qp, qp_index)
        return
    if i64(eng["now"]) - i64(qp["progress_at"]) >= 4096 << i64(qp["timeout"]):
        eng["counters"][C.LOCAL_ACK_TIMEOUT_ERR] += 1
        if qp["retry_left"] == 0:
            eng["counters"][C.RETRY_EXCEEDED_ERR] += 1
            fail_send(eng, qp, qp_index, WcStatus.RETRY_EXC_ERR)
            return
        qp["retry_left"] -= 1
        qp["progress_at"] = eng["now"]
        qp["probe"] = Probe.NONE
        _close_window(qp)
        rewind(eng, qp, qp_index)
        qp["gap_valid"] = 0
    else:
        _ask_early(eng, qp, qp_index)
    qp["probes"] = min(200, i64(qp["probes"]) + 1)
    arm_ack_timer(eng, qp, qp_index)
