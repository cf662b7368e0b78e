"""NAK 5 and RESUME between peers that have agreed on them, and what they are to one that has not."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from softrnic.counters import C
from softrnic.errors import VerbsError
from softrnic.layout import ReqWait
from softrnic.migrate import restore, save
from softrnic.verbs import Device, EventType, Qp, QpState, QpType, RecvWr, SendWr, WcStatus, WrOpcode
from tests.migrate.moving import move
from tests.migrate.test_suspend import opcodes, read_all
from tests.pairs import IPV4, IPV6, Pair, Side, deliver
from tests.script.harness import dissect
from tests.wire.naive import icrc, ip_checksum

S = 1_000_000_000
RESUME = 0x19


def agreed(pair: Pair, *, move: bool = False, **attributes: int) -> tuple[Qp, Qp]:
    """A pair of QPs that know each other's habits; the peer has no retry to lose."""
    qps = pair.connect(**{"retry_cnt": 0, "timeout": 10, "rnr_retry": 0, **attributes})
    for qp in qps:
        qp.peer_may_stop = True
        qp.peer_may_move = move
    return qps


def write(pair: Pair, length: int) -> SendWr:
    return SendWr(
        WrOpcode.RDMA_WRITE, [pair.a.mr.sge(0, length)], 1, remote_addr=pair.b.mr.iova, rkey=pair.b.mr.rkey
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["write", "read", "atomic", "send"])
def test_a_peer_without_a_retry_waits_as_long_as_it_takes(kind: str) -> None:
    """Sixty seconds; it asks four times a second, and goes on at once when it is told."""
    p = Pair()
    qa, qb = agreed(p)
    qb.post_recv(RecvWr([p.b.mr.sge(0, 5000)], 9))
    to = {"remote_addr": p.b.mr.iova, "rkey": p.b.mr.rkey}
    wr = {
        "write": write(p, 5000),
        "read": read_all(p, 5000),
        "atomic": SendWr(WrOpcode.ATOMIC_FETCH_AND_ADD, [p.a.mr.sge(0, 8)], 1, compare_add=1, **to),
        "send": SendWr(WrOpcode.SEND, [p.a.mr.sge(0, 5000)], 1),
    }[kind]
    qb.suspend("stop")
    qa.post_send(wr)
    p.run(budget_ns=60 * S)
    assert int(qa.record["req_wait"]) == ReqWait.STOPPED
    assert 200 < p.a.device.counter(C.RCVD_STOP) < 300
    assert p.a.device.counter(C.LOCAL_ACK_TIMEOUT_ERR) == 0
    said = opcodes(p, p.b)
    qb.resume()
    before = p.now
    p.run()
    assert said[0] == RESUME
    assert p.now - before < 10_000_000
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS]
    assert p.b.device.counter(C.SEND_RESUME) == p.a.device.counter(C.RCVD_RESUME) == 1
    assert int(qb.record["req_wait"]) == ReqWait.NONE


def test_who_has_not_agreed_takes_it_for_an_error_and_is_never_told() -> None:
    p = Pair()
    qa, qb = p.connect()
    with pytest.raises(VerbsError, match="has not agreed") as error:
        qb.suspend("stop")
    assert error.value.errno == errno.EINVAL
    assert qb.state == QpState.RTS
    said = opcodes(p, p.b)
    p.b.device.suspend("stop")  # a device does what each QP can bear
    qa.post_send(write(p, 8))
    p.run(budget_ns=S // 10)
    assert p.b.device.counter(C.SEND_STOP) == 0
    assert p.b.device.counter(C.SEND_RNR_ERR) > 0
    p.b.device.resume()
    p.run()
    assert RESUME not in said
    assert [wc.ok for wc in p.a.cq.poll()] == [True]
    # and if only one end believes in it
    qb.peer_may_stop = True
    qb.suspend("stop")
    qa.post_send(write(p, 8))
    p.run(budget_ns=S)
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.BAD_RESP_ERR]
    qb.resume()
    p.run(budget_ns=S // 10)
    assert p.a.device.counter(C.RCVD_RESUME) == 0


def test_a_resume_without_agreement_is_no_opcode() -> None:
    p = Pair()
    _, qb = p.connect()
    qb.peer_may_stop = True
    qb.suspend()
    qb.resume()
    p.run(budget_ns=S // 100)
    assert p.a.device.counter(C.DROP_OPCODE) > 1
    assert p.a.device.counter(C.RCVD_RESUME) == 0


@pytest.mark.parametrize("kind", [QpType.UC, QpType.UD])
def test_only_rc_agrees(kind: QpType) -> None:
    p = Pair()
    qa, _ = p.connect(kind)
    with pytest.raises(VerbsError, match="no peer that waits"):
        qa.peer_may_stop = True


@pytest.mark.parametrize("lost", [1, 2, 5])
@pytest.mark.parametrize("what", [RESUME, 0x11])
def test_resume_is_said_until_it_is_heard(lost: int, what: int) -> None:
    """RESUMEs, or the acknowledgements of them, are lost: nothing but time."""
    p = Pair()
    qa, qb = agreed(p, retry_cnt=7)
    qb.suspend("stop")
    qa.post_send(write(p, 3000))
    p.run(until=lambda: int(qa.record["req_wait"]) == ReqWait.STOPPED)
    left = lost

    def lose(data: bytes, sender: Side) -> bytes | None:
        nonlocal left
        if left and data[42] == what:
            left -= 1
            return None
        return data

    p.filter = lose
    qb.resume()
    before = p.now
    p.run()
    assert left == 0
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS]
    assert p.now - before < 200_000_000


def test_a_peer_that_misses_every_resume_finds_out_by_itself() -> None:
    p = Pair()
    qa, qb = agreed(p)
    qb.suspend("stop")
    qa.post_send(write(p, 3000))
    p.run(until=lambda: int(qa.record["req_wait"]) == ReqWait.STOPPED)
    p.filter = lambda data, sender: None if data[42] == RESUME else data
    qb.resume()
    p.run(until=lambda: int(qa.record["sq_head"]) == 1)
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS]


def test_duplicates_are_held_too() -> None:
    """The acknowledgement before the suspension was lost: what comes again is no reason to give up."""
    p = Pair()
    qa, qb = agreed(p, retry_cnt=1)
    p.filter = lambda data, sender: None if sender is p.b else data
    qa.post_send(write(p, 3000))
    p.step()
    p.filter = None
    qb.suspend("stop")
    p.run(budget_ns=20 * S)
    assert int(qa.record["req_wait"]) == ReqWait.STOPPED
    qb.resume()
    p.run()
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS]


def test_both_stop_at_once() -> None:
    p = Pair()
    qa, qb = agreed(p)
    qa.post_send(write(p, 9000))
    qb.post_send(SendWr(WrOpcode.RDMA_WRITE, [p.b.mr.sge(0, 9000)], 2, remote_addr=p.a.mr.iova, rkey=p.a.mr.rkey))
    p.step()
    qa.suspend("stop")
    qb.suspend("stop")
    p.run(budget_ns=S)
    qb.resume()
    p.run(budget_ns=S)
    assert p.b.device.counter(C.SEND_RESUME) > 3
    qa.resume()
    p.run()
    assert [wc.ok for side in (p.a, p.b) for wc in side.cq.poll()] == [True, True]


@pytest.mark.parametrize("opcode", [WrOpcode.RDMA_READ, WrOpcode.ATOMIC_FETCH_AND_ADD])
def test_an_answer_lost_on_the_move(opcode: WrOpcode) -> None:
    """What acknowledges the RESUME shows that a READ was executed whose answer never came: it is asked for again."""
    p = Pair()
    _, qb = agreed(p)
    p.filter = lambda data, sender: None if sender is p.a else data
    qb.post_send(SendWr(opcode, [p.b.mr.sge(0, 8)], 1, remote_addr=p.a.mr.iova, rkey=p.a.mr.rkey, compare_add=3))
    p.step()
    p.step()
    p.filter = None
    qb.suspend("stop")
    qb.resume()
    p.run(budget_ns=S)
    assert [wc.status for wc in p.b.cq.poll()] == [WcStatus.SUCCESS]
    assert p.b.device.counter(C.SEND_RESUME) == 1
    assert p.a.buf[0] == (3 if opcode == WrOpcode.ATOMIC_FETCH_AND_ADD else 0)


def test_a_peer_is_told_whatever_comes_of_it_meanwhile() -> None:
    """An answer in flight shows that its responder lives, not that its requester knows of us."""
    p = Pair()
    qa, qb = agreed(p)
    qb.post_send(SendWr(WrOpcode.RDMA_READ, [p.b.mr.sge(0, 8)], 1, remote_addr=p.a.mr.iova, rkey=p.a.mr.rkey))
    p.step()
    qa.record["req_wait"] = ReqWait.STOPPED
    qb.suspend("stop")
    qb.resume()
    p.run(budget_ns=S // 100)
    assert [wc.status for wc in p.b.cq.poll()] == [WcStatus.SUCCESS]
    assert p.a.device.counter(C.RCVD_RESUME) == 1
    assert int(qa.record["req_wait"]) == ReqWait.NONE


def test_an_agreement_moves_along() -> None:
    p = Pair()
    p.a.qps, p.b.qps = [], []
    qa, _ = agreed(p)
    p.a.qps, p.b.qps = p.a.qps[:1], p.b.qps[:1]
    move(p, p.b, "stop")
    assert p.b.qps[0].peer_may_stop
    assert not p.b.qps[0].peer_may_move
    qa.post_send(write(p, 3000))
    p.run()
    assert [wc.ok for wc in p.a.cq.poll()] == [True]


def elsewhere(p: Pair, ip: str, mac: bytes) -> Qp:
    """The pair's `b` behind another address: what its GID was, it is no more."""
    side = p.b
    side.device.suspend("stop")
    p.run(until=lambda: side.device.settled)
    data = save(side.device, {side.mr.key: "buf"})
    side.device.destroy()
    device = Device("far")
    made = restore(device, data, {"buf": side.buf})
    (qb,) = made.qps.values()
    ah = qb.attributes["ah"]
    device.del_gid(0)
    device.add_gid(ip, mac, index=0)
    qb._set_path(ah, int(qb.record["dqpn"]))
    side.device, side.mr, side.cq = device, made.mrs[side.mr.key], made.cqs[side.cq.cqn]
    device.resume()
    return qb


@pytest.mark.parametrize("ips", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_a_peer_that_has_moved_is_followed(ips: tuple[str, str]) -> None:
    """To another IP address and another MAC; in mid-message."""
    p = Pair(ips=ips)
    qa, _ = agreed(p, move=True, retry_cnt=7, timeout=14)
    qa.post_send(write(p, 60_000))
    p.step()
    new = ips[1] + "1"
    elsewhere(p, new, b"\x02\x00\x00\x00\x00\x33")
    for _ in range(20):
        p.run(until=lambda: bool(p.a.device.record["event_prod"] - p.a.device.record["event_cons"]), budget_ns=S // 100)
        p.a.device.dispatch_events()
    p.run()
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS]
    assert (p.a.buf[:60_000] == p.b.buf[:60_000]).all()
    assert qa.query()["ah"].dgid == ip_address(new)
    assert qa.query()["ah"].dmac == b"\x02\x00\x00\x00\x00\x33"
    assert {e.type for e in p.a.device.async_events} == {EventType.PATH_MIG}


def test_a_peer_that_must_not_move_is_not_followed() -> None:
    p = Pair()
    qa, _ = agreed(p)
    elsewhere(p, "10.0.0.21", b"\x02\x00\x00\x00\x00\x33")
    p.run(budget_ns=S // 10)
    assert p.a.device.counter(C.DROP_PEER) > 3
    assert int(p.a.device.record["event_prod"]) == 0
    assert str(qa.query()["ah"].dgid) == IPV4[1]


def test_a_resume_from_elsewhere_must_be_of_this_connection() -> None:
    """With a PSN the peer's requests have not reached yet it is not believed."""
    p = Pair()
    qa, qb = agreed(p, move=True)
    qb.suspend()
    qb.resume()
    n = p.b.device.engine.transmit(p.b.tx, p.now)
    assert n == 1
    frame = p.b.tx.frames[0]
    data = p.b.tx.slab[int(frame["off"]) :][: int(frame["len"])].tobytes()
    assert dissect(data).opcode == RESUME
    for psn, events in ((201, 0), (200, 1), (199, 2)):
        forged = bytearray(data)
        forged[29] ^= 0x40  # of the source address
        forged[51:54] = psn.to_bytes(3, "big")
        deliver(p.a.device, fixed(bytes(forged)), p.now)
        assert int(p.a.device.record["event_prod"]) == events
    assert qa.state == QpState.RTS


def fixed(data: bytes) -> bytes:
    """An IPv4 frame with its checksum and ICRC made right again."""
    header = data[14:24] + bytes(2) + data[26:34]
    packet = header[:10] + ip_checksum(header).to_bytes(2, "big") + header[12:] + data[34:-4]
    return data[:14] + packet + icrc(packet + bytes(4))
