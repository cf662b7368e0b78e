"""Late packets at the old place of a function go on to the new one, changed in nothing but their Ethernet header."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from softrnic.counters import C
from softrnic.errors import VerbsError
from softrnic.layout import FORWARD_SLOTS, MAX_FORWARD, make_ring
from softrnic.verbs import Device, Onward, SendWr, WrOpcode
from softrnic.verbs.forward import forwarded
from tests.pairs import IPV4, IPV6, MAC, Pair, deliver

NEW, VIA = b"\x02\x00\x00\x00\x00\x77", b"\x02\x00\x00\x00\x00\x88"
TO = Onward(NEW, VIA)


def sent(device: Device, now: int, slots: int = 8) -> list[tuple[bytes, int]]:
    """Frames of one transmit, with their segment size."""
    ring = make_ring(slots)
    n = device.engine.transmit(ring, now)
    return [(ring.slab[int(f["off"]) :][: int(f["len"])].tobytes(), int(f["seg"])) for f in ring.frames[:n]]


def request(*, offload: bool = False, length: int = 100, ips: tuple[str, str] = IPV4) -> tuple[Pair, bytes, int]:
    """A frame of a WRITE to the pair's `b`, whose function is suspended."""
    p = Pair(offload=offload, ips=ips)
    qa, _ = p.connect()
    qa.post_send(SendWr(
        WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, length)], 1, remote_addr=p.b.mr.iova, rkey=p.b.mr.rkey
    ))  # fmt: skip
    data, seg = sent(p.a.device, p.now)[-1]
    p.b.device.suspend()
    return p, data, seg


def tagged(data: bytes, vid: int) -> bytes:
    return data[:12] + b"\x81\x00" + vid.to_bytes(2, "big") + data[12:]


@pytest.mark.parametrize("ips", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("came", [None, 5])
@pytest.mark.parametrize("vlan", [None, 7])
@pytest.mark.parametrize("gone", [False, True])
def test_only_the_ethernet_header_changes(
    ips: tuple[str, str], came: int | None, vlan: int | None, gone: bool
) -> None:
    p, data, _ = request(ips=ips)
    p.b.device.suspend("forward", to=Onward(NEW, VIA, vlan))
    if gone:
        p.b.device.destroy()
    deliver(p.b.device, data if came is None else tagged(data, came), p.now)
    expected = NEW + VIA + data[12:]
    if (vlan or came) is not None:
        expected = tagged(expected, vlan or came or 0)
    assert p.b.device.engine.has_work()
    assert sent(p.b.device, p.now) == [(expected, 0)]
    assert not p.b.device.engine.has_work()
    assert p.b.device.counter(C.FORWARDED_PKTS) == 1
    assert p.b.device.counter(C.DROP_ADDRESS) == p.b.device.counter(C.SENT_FRAMES) == 0


def test_super_frames_go_whole() -> None:
    p, data, seg = request(offload=True, length=20_000)
    assert seg > 1024
    p.b.device.suspend("forward", to=TO)
    deliver(p.b.device, data, p.now, seg)
    assert sent(p.b.device, p.now) == [(NEW + VIA + data[12:], seg)]
    assert p.b.device.counter(C.FORWARDED_PKTS) > 10
    p.b.device.engine.set_offload(0, 1)
    deliver(p.b.device, data, p.now, seg)
    assert sent(p.b.device, p.now) == []
    assert p.b.device.counter(C.DROP_FORWARD) > 10


def test_it_is_taken_at_the_new_place() -> None:
    """The frame as it leaves is good for a function of the same IP address behind another MAC."""
    p, data, _ = request()
    twin = Pair()
    twin.connect()
    p.b.device.suspend("forward", to=TO)
    deliver(p.b.device, data, p.now)
    ((late, _),) = sent(p.b.device, p.now)
    deliver(twin.b.device, late, twin.now)
    assert twin.b.device.counter(C.RCVD_PKTS) == 1
    assert twin.b.device.counter(C.RX_WRITE_REQUESTS) + twin.b.device.counter(C.SEND_REMOTE_ACCESS_ERR) == 1


@pytest.mark.parametrize(
    ("dst", "src", "counter"),
    [
        (NEW, MAC[0], C.DROP_ADDRESS),  # sent to the new place: a switch that floods
        (b"\x02\x00\x00\x00\x00\x99", MAC[0], C.DROP_ADDRESS),  # to a third
        (b"\xff" * 6, MAC[0], C.DROP_ADDRESS),
        (MAC[1], NEW, C.DROP_FORWARD),  # from the new place
    ],
)
def test_no_loops(dst: bytes, src: bytes, counter: C) -> None:
    p, data, _ = request()
    p.b.device.suspend("forward", to=TO)
    deliver(p.b.device, dst + src + data[12:], p.now)
    assert sent(p.b.device, p.now) == []
    assert p.b.device.counter(counter) == 1


def test_two_that_forward_to_each_other() -> None:
    """A frame is passed on once, and not back."""
    p, data, _ = request()
    other = Device("other")
    index = other.add_gid(IPV4[1], NEW)
    other.forward(Onward(MAC[1], NEW))
    p.b.device.forward(Onward(NEW, MAC[1][:5] + b"\x44"))
    p.b.device.forward(Onward(NEW, VIA))
    deliver(p.b.device, data, p.now)
    ((frame, _),) = sent(p.b.device, p.now)
    deliver(other, frame, p.now)
    ((again, _),) = sent(other, p.now)  # it came from VIA, and goes to what the function was called before
    deliver(p.b.device, again, p.now)
    assert sent(p.b.device, p.now) == []
    assert p.b.device.counter(C.DROP_FORWARD) == 1
    other.del_gid(index)


def test_time_and_budget_end_it() -> None:
    p, data, _ = request()
    p.b.device.engine.on_timer(p.now)
    p.b.device.suspend("forward", to=Onward(NEW, VIA, frames=3, lifetime_ns=1000))
    for _ in range(5):
        deliver(p.b.device, data, p.now + 999)
    assert len(sent(p.b.device, p.now)) == 3
    assert p.b.device.counter(C.DROP_FORWARD) == 2
    p.b.device.suspend("forward", to=Onward(NEW, VIA, lifetime_ns=1000))
    now = int(p.b.device.record["now"])
    deliver(p.b.device, data, now + 1000)
    assert sent(p.b.device, now + 1000) == []
    assert p.b.device.counter(C.DROP_ADDRESS) == 1


def test_a_full_ring_loses() -> None:
    p, data, _ = request()
    p.b.device.suspend("forward", to=TO)
    for _ in range(FORWARD_SLOTS + 3):
        deliver(p.b.device, data, p.now)
    assert p.b.device.counter(C.DROP_FORWARD) == 3
    ip = p.b.device.gids[0].ip
    assert forwarded(p.b.device.adapter, ip) == FORWARD_SLOTS
    taken = [len(sent(p.b.device, p.now, slots=5)) for _ in range(8)]
    assert taken == [5, 5, 5, 5, 5, 5, 2, 0]
    deliver(p.b.device, data, p.now)
    assert len(sent(p.b.device, p.now)) == 1


def test_giving_up_takes_it_back() -> None:
    """After `abort` packets are taken here again, whatever the policy was before."""
    p = Pair()
    qa, qb = p.connect(rnr_retry=7)
    for policy in ("rnr", "silence"):
        p.b.device.suspend(policy)
        p.b.device.suspend("forward", to=TO)
        qa.post_send(SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, 64)], 1, remote_addr=p.b.mr.iova, rkey=p.b.mr.rkey))
        p.step()
        assert p.b.device.counter(C.FORWARDED_PKTS) > 0
        p.b.device.abort()
        p.run()
        assert [wc.ok for wc in p.a.cq.poll()] == [True]
    assert p.b.device.record["nforward"] == 0
    assert qb.query()["state"].name == "RTS"


def test_coming_back_ends_it() -> None:
    p, data, _ = request()
    p.b.device.forward(TO)
    p.b.device.destroy()
    heir = Device("heir", adapter=p.b.device.adapter)
    index = heir.add_gid(IPV4[1], MAC[1], hearing=False)
    deliver(heir, data, p.now)
    assert len(sent(heir, p.now)) == 1
    heir.hear()
    deliver(heir, data, p.now)
    assert sent(heir, p.now) == []
    assert heir.counter(C.DROP_QPN) == 1
    heir.del_gid(index)
    deliver(heir, data, p.now)
    assert sent(heir, p.now) == []


def test_table_full_and_reused() -> None:
    device = Device()
    for i in range(MAX_FORWARD):
        device.add_gid(f"10.3.0.{i}", MAC[0])
    device.forward(Onward(NEW, VIA, lifetime_ns=1000))
    device.destroy()
    heir = Device("heir", adapter=device.adapter)
    heir.add_gid("10.4.0.1", MAC[0])
    with pytest.raises(VerbsError, match="addresses are being forwarded") as error:
        heir.forward(TO)
    assert error.value.errno == errno.ENOSPC
    assert heir.record["gids"][0]["valid"]
    device.engine.transmit(make_ring(1), 2000)
    heir.forward(TO)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": b"12345"}, {"mac": b"\x01\x00\x00\x00\x00\x01"}, {"via": bytes(6)}, {"mac": VIA}, {"vlan": 0},
        {"vlan": 4095}, {"lifetime_ns": 0}, {"frames": 0},
    ],
)  # fmt: skip
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(VerbsError) as error:
        Onward(**{"mac": NEW, "via": VIA, **wrong})
    assert error.value.errno == errno.EINVAL


def test_refused_policies() -> None:
    p = Pair()
    qa, _ = p.connect()
    with pytest.raises(VerbsError, match="where to"):
        p.a.device.suspend("forward")
    with pytest.raises(VerbsError, match="where to"):
        p.a.device.suspend("rnr", to=TO)
    with pytest.raises(VerbsError, match="by address"):
        qa.suspend("forward")
    with pytest.raises(VerbsError, match="addressed by already"):
        p.a.device.suspend("forward", to=Onward(MAC[0], VIA))
    assert np.all(p.a.device.record["gids"][: p.a.device.record["ngid"]]["valid"] == 1)
