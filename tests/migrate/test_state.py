"""The saved state itself: complete, small, refused by the path of what is wrong, and of no harm when mutated."""

from __future__ import annotations

import copy
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from softrnic.counters import C
from softrnic.errors import StateError, VerbsError
from softrnic.layout import TimerKind, WqeState, make_ring
from softrnic.migrate import restore, save
from softrnic.migrate.envelope import OPTIONAL, PRODUCER, Section, unwrap, wrap
from softrnic.migrate.schema import SECTIONS
from softrnic.verbs import (
    Access,
    AhAttr,
    Device,
    EventType,
    Mtu,
    QpCap,
    QpState,
    QpType,
    RecvWr,
    SendWr,
    WcStatus,
    WrOpcode,
)
from tests.migrate.moving import Everything, move
from tests.pairs import ALL_ACCESS, IPV4, IPV6, MAC, Pair

GOLDEN = Path(__file__).parent / "golden" / "v1.bin"
KNOWN = {ident: version for ident, (_, version, _) in SECTIONS.items()}
IDS = {name: ident for ident, (kind, _, _) in SECTIONS.items() for name in kind.__struct_fields__}


def tree(data: bytes) -> dict[int, dict[str, Any]]:
    """Every section as plain dicts and lists."""
    return {ident: msgspec.msgpack.decode(s.payload) for ident, s in unwrap(data, KNOWN).items()}


def packed(sections: dict[int, dict[str, Any]]) -> bytes:
    return wrap(
        [Section(i, 1, OPTIONAL if SECTIONS[i][2] else 0, msgspec.msgpack.encode(v)) for i, v in sections.items()],
        PRODUCER,
    )


def rich_device() -> Device:
    """One device with something of everything, the same each time and on every machine."""
    device = Device("golden", node_guid=0x1234)
    device.add_gid(IPV4[0], MAC[0])
    device.del_gid(device.add_gid("10.9.9.9", MAC[0]))
    device.add_gid("192.0.2.1", MAC[0])
    device.add_gid(IPV6[0], MAC[0], vlan=7)
    pd, other = device.alloc_pd(), device.alloc_pd()
    cq, wide = device.create_cq(16), device.create_cq(64, cqn=9)
    heap = pd.reg_mr(np.zeros(4096, np.uint8), ALL_ACCESS, iova=0x10000, key=0x101)
    other.reg_mr(bytearray(100), Access.LOCAL_WRITE, iova=0, key=0xABCDEF)
    fast = pd.alloc_mr(bytearray(64), key=0x303)
    device.record["mrs"][fast.index]["iova"] = 0x7000
    window = pd.alloc_mw(2, key=0x404)
    pd.alloc_mw(1, key=0x505)
    ah = pd.create_ah(AhAttr(IPV4[1], 0, MAC[1], traffic_class=4))
    srq = pd.create_srq(8, 2, limit=1, srqn=3)
    srq.post_recv([RecvWr([heap.sge(0, 10), heap.sge(20, 10)], 70 + i) for i in range(3)])
    path = {"ah": AhAttr(IPV4[1], 0, MAC[1]), "path_mtu": Mtu.MTU_1024, "dqpn": 0x77, "rq_psn": 0xFFFFFE}
    rc = pd.create_qp(QpType.RC, cq, wide, QpCap(8, 8, 2, 2, 32), srq=srq, qpn=0x55)
    rc.modify(QpState.INIT, pkey_index=0, port=1, access_flags=ALL_ACCESS)
    rc.modify(QpState.RTR, **path, max_dest_rd_atomic=4, min_rnr_timer=12)
    rc.modify(QpState.RTS, sq_psn=0xFFFFFF, timeout=14, retry_cnt=5, rnr_retry=6, max_rd_atomic=2)
    to: dict[str, Any] = {"remote_addr": 0x9000, "rkey": 0x99}
    rc.post_send([
        SendWr(WrOpcode.BIND_MW, wr_id=1, rkey=window.rkey, remote_addr=0x10100, bind_mr=heap, bind_length=256,
               access=Access.REMOTE_READ),
        SendWr(WrOpcode.RDMA_WRITE, [heap.sge(0, 1024), heap.sge(0, 1000)], 2, **to),
        SendWr(WrOpcode.RDMA_READ, [heap.sge(0, 3000)], 3, **to),
        SendWr(WrOpcode.SEND, wr_id=4, inline=b"inline data"),
        SendWr(WrOpcode.ATOMIC_FETCH_AND_ADD, [heap.sge(8, 8)], 5, compare_add=1, **to),
        SendWr(WrOpcode.ATOMIC_CMP_AND_SWP, [heap.sge(8, 8)], 6, compare_add=1, swap=1 << 63, **to),
    ])  # fmt: skip
    device.engine.transmit(make_ring(8), 1_000_000)
    ud = pd.create_qp(QpType.UD, cq, cq, QpCap(4, 4, 1, 1))
    ud.modify(QpState.INIT, pkey_index=0, port=1, qkey=5)
    ud.modify(QpState.RTR)
    ud.modify(QpState.RTS, sq_psn=3)
    ud.post_recv(RecvWr([heap.sge(0, 100)], 80))
    ud.suspend()
    ud.post_send(SendWr(WrOpcode.SEND, [heap.sge(0, 5)], 81, ah=ah, dqpn=9, qkey=5))
    uc = pd.create_qp(QpType.UC, wide, wide)
    uc.modify(QpState.INIT, pkey_index=0, port=1, access_flags=Access.REMOTE_WRITE | Access.LOCAL_WRITE)
    uc.post_recv(RecvWr([heap.sge(0, 100)], 90))
    broken = pd.create_qp(QpType.RC, cq, cq)
    broken.modify(QpState.INIT, pkey_index=0, port=1, access_flags=Access(0))
    broken.post_recv(RecvWr([], 95))
    broken.modify(QpState.ERR)
    pd.create_qp(QpType.GSI, cq, cq)
    wide.req_notify(solicited_only=True)
    device.record["counters"][C.SENT_PKTS] = 12345
    device.record["counters"][C.RCVD_BYTES] = 1 << 40
    for qp in device.qps.values():
        qp.rnr_fault_timer = 0  # there was nothing else when version 1 was written
    device.suspend()
    return device


def memory_of(data: bytes) -> dict[str, bytearray]:
    return {r["name"]: bytearray(r["length"]) for r in tree(data)[2]["regions"]}


@pytest.fixture(scope="module")
def rich() -> bytes:
    return save(rich_device())


@pytest.fixture(scope="module")
def moving() -> bytes:
    """A device in the midst of messages both ways."""
    script, found = Everything(), []
    script.run(35, lambda: found.append(move(script.pair, script.pair.b)))
    return bytes(found[0])


# --- what is in it --------------------------------------------------------------------------------------------


def test_golden(rich: bytes) -> None:
    """Version 1 is read for ever, and is written the same by this version."""
    golden = GOLDEN.read_bytes()
    device = Device("other")
    restore(device, golden, memory_of(golden))
    assert unwrap(save(device), KNOWN) == unwrap(golden, KNOWN)
    assert tree(rich) == tree(golden)


def test_restored(rich: bytes) -> None:
    device = Device("other")
    memory = memory_of(rich)
    made = restore(device, rich, lambda region: memory[region.name])
    rc = made.qps[0x55]
    assert save(device) == rich
    assert rc.state == QpState.SUSPENDED
    assert rc.resumes_to == QpState.RTS
    assert rc.query()["timeout"] == 14
    assert [wc.wr_id for wc in made.cqs[0].poll()] == [1, 95]
    assert made.mws[0x404].valid
    assert not made.mrs[0x303].valid
    assert sorted(device.gids) == [0, 1, 2]
    assert device.counter(C.RCVD_BYTES) == 1 << 40
    assert device.record["wqes"][int(rc.record["sq_base"])]["state"] == WqeState.STARTED
    assert save(Device("empty"))


def test_multicast_groups_come_along() -> None:
    device, other = Device("a"), Device("b")
    cq = device.create_cq(4)
    qp = device.alloc_pd().create_qp(QpType.UD, cq, cq)
    for group in ("239.1.2.3", "ff0e::1"):
        qp.attach_mcast(group)
    device.suspend()
    made = restore(other, save(device), {})
    assert made.qps[qp.qpn].groups == qp.groups
    assert other.record["ngroup"] == 2


def test_numbers_go_on(rich: bytes) -> None:
    """New objects get none of the numbers in use."""
    device = Device("other")
    made = restore(device, rich, memory_of(rich))
    pd = made.pds[0]
    assert device.create_cq(1).cqn not in made.cqs
    assert pd.create_srq().srqn not in made.srqs
    assert pd.create_qp(QpType.RC, made.cqs[0], made.cqs[0]).qpn not in made.qps
    assert pd.reg_mr(bytearray(8)).key not in {**made.mrs, **made.mws}


def test_events_and_completions_are_not_lost(rich: bytes) -> None:
    device = Device("one")
    made = restore(device, rich, memory_of(rich))
    made.qps[0x55].destroy()
    p = Pair()
    qa, _ = p.connect()
    qa.modify(QpState.SQD, en_sqd_async_notify=1)
    p.run()
    qa.suspend()
    p.a.cq.req_notify()
    second = Device("two")
    moved = restore(second, save(p.a.device), {f"{p.a.mr.key:#x}": p.a.buf})
    second.dispatch_events()
    event = second.get_async_event()
    assert event is not None
    assert event.type == EventType.SQ_DRAINED
    assert event.element is moved.qps[qa.qpn]
    assert int(second.record["cqs"][0]["armed"]) == 1


def test_rnr_wait_goes_on_with_what_is_left() -> None:
    p = Pair()
    qa, qb = p.connect(min_rnr_timer=20)
    qa.post_send(SendWr(WrOpcode.SEND, [p.a.mr.sge(0, 8)], 1))
    while int(qa.record["timer"]) != TimerKind.RNR:
        p.step()
        p.now += 1000
    p.now += 4_000_000
    p.a.device.engine.on_timer(p.now)
    p.a.qps, p.b.qps = [qa], [qb]
    move(p, p.a)
    qb.post_recv(RecvWr([p.b.mr.sge(0, 8)], 2))
    start = p.now = p.now + 1_000_000_000
    p.run(until=lambda: bool(p.b.cq.poll()))
    assert 5_900_000 < p.now - start < 6_300_000


def test_steady_state_is_small() -> None:
    """At most 1 KiB per QP, with a full replay ring and full receive queue of the usual sizes."""
    sizes = []
    for n in (1, 21):
        p = Pair()
        for _ in range(n):
            qa, _ = p.connect()
            reads = [
                SendWr(WrOpcode.RDMA_READ, [p.a.mr.sge(0, 64)], i, remote_addr=p.b.mr.iova, rkey=p.b.mr.rkey)
                for i in range(16)
            ]
            qa.post_send(reads)
            p.run()
        p.a.cq.poll(1000)
        p.b.device.suspend()
        sizes.append(len(save(p.b.device)))
    assert (sizes[1] - sizes[0]) / 20 <= 1024


# --- what is refused ------------------------------------------------------------------------------------------


def test_save_wants_a_device_that_stands_still() -> None:
    p = Pair()
    p.connect()
    with pytest.raises(VerbsError, match="not suspended"):
        save(p.a.device)
    p.a.device.suspend()
    data = save(p.a.device)
    with pytest.raises(VerbsError, match="not empty"):
        restore(p.b.device, data, {})


def test_memory_must_be_there(rich: bytes) -> None:
    memory = memory_of(rich)
    del memory["0x303"]
    with pytest.raises(StateError, match=r"\$\.regions\[2\]\.name: no memory"):
        restore(Device("x"), rich, memory)
    with pytest.raises(StateError, match=r"\$\.regions\[2\]\.length"):
        restore(Device("x"), rich, {**memory, "0x303": bytearray(63)})
    with pytest.raises(StateError, match="no buffer"):
        restore(Device("x"), rich, {**memory, "0x303": 5})


def change(data: bytes, path: str, value: Any) -> bytes:
    """The state with one field changed: `path` as in an error, from the section's own field on."""
    sections = tree(data)
    keys = [int(k) if k.isdigit() else k for k in path.replace("[", ".").replace("]", "").split(".")]
    at: Any = sections[IDS[str(keys[0])]]
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return packed(sections)


# In `rich`, QP 0 is the RC QP in mid-flight; a send WQE is a row: [0] wr_id, [1] opcode, [3] state, [15] first_psn.
@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("node_guid", -1, r"\$\.node_guid"),
        ("gids[0].vlan", 4095, r"\$\.gids\[0\]\.vlan"),
        ("gids[1].index", 0, r"\$\.gids\[1\]"),
        ("gids[0].more", 1, r"\$\.gids\[0\]"),
        ("regions[0].pd", 9, r"\$\.regions\[0\]\.pd"),
        ("regions[1].key", 0x101, r"\$\.regions\[1\]"),
        ("regions[0].length", 1 << 62, r"\$\.regions\[0\]\.length"),
        ("windows[0].bound.length", 1 << 40, r"\$\.windows\[0\]\.bound"),
        ("windows[0].bound.parent", 0x999, r"\$\.windows\[0\]\.bound\.parent"),
        ("windows[0].bound.qpn", 0x999, r"\$\.windows\[0\]\.bound\.qpn"),
        ("ahs[0].path.sgid_index", 5, r"\$\.ahs\[0\]\.path"),
        ("cqs[0].size", 17, r"\$\.cqs\[0\]\.size"),
        ("cqs[1].cqn", 0, r"\$\.cqs\[1\]"),
        ("srqs[0].limit", 9, r"\$\.srqs\[0\]"),
        ("qps[0].qpn", 1 << 24, r"\$\.qps\[0\]\.qpn"),
        ("qps[0].send_cq", 5, r"\$\.qps\[0\]\.send_cq"),
        ("qps[0].srq", 5, r"\$\.qps\[0\]\.srq"),
        ("qps[0].suspended", False, r"\$\.qps\[0\]\.suspended"),
        ("qps[0].state", 5, r"\$\.qps\[0\]"),
        ("qps[0].reached", 1, r"\$\.qps\[0\]\.reached"),
        ("qps[0].path_mtu", 6, r"\$\.qps\[0\]\.path_mtu"),
        ("qps[0].path_mtu", 5, r"\$\.qps\[0\]\.req"),
        ("qps[0].cap[0]", 7, r"\$\.qps\[0\]\.cap"),
        ("qps[0].cap[0]", 2, r"\$\.qps\[0\]\.req\.sq"),
        ("qps[0].resp.epsn", -1, r"\$\.qps\[0\]\.resp\.epsn"),
        ("qps[0].resp.message", 1, r"\$\.qps\[0\]\.resp\.off"),
        ("qps[0].resp.rd_head", 1, r"\$\.qps\[0\]\.resp\.rd_head"),
        ("qps[0].req.una_psn", 7, r"\$\.qps\[0\]\.req"),
        ("qps[0].req.req_psn", 0, r"\$\.qps\[0\]\.req\.req_psn"),
        ("qps[0].req.hi_psn", 0x1000, r"\$\.qps\[0\]\.req\.hi_psn"),
        ("qps[0].req.cur", 40, r"\$\.qps\[0\]\.req\.cur"),
        ("qps[0].req.hi", 1, r"\$\.qps\[0\]\.req"),
        ("qps[0].req.off", 512, r"\$\.qps\[0\]\.req\.off"),
        ("qps[0].req.sq[0][3]", 2, r"\$\.qps\[0\]\.req\.sq\[0\]"),
        ("qps[0].req.sq[0][1]", 7, r"\$\.qps\[0\]\.req\.sq\[0\]"),
        ("qps[0].req.sq[0][16]", 0x100, r"\$\.qps\[0\]\.req\.sq\[0\]"),
        ("qps[0].req.sq[1][15]", 0x100, r"\$\.qps\[0\]\.req\.sq\[1\]"),
        ("qps[0].req.sq[0][2]", 10, r"\$\.qps\[0\]\.req\.sq\[0\]"),
        ("qps[0].groups", [bytes(10) + b"\xff\xff\xef\1\2\3"], r"\$\.qps\[0\]\.groups\[0\]"),  # of an RC QP
        ("qps[1].groups", [bytes(16)], r"\$\.qps\[1\]\.groups\[0\]"),
        ("qps[1].groups", [b"short"], r"\$\.qps\[1\]\.groups\[0\]"),
        ("counters.sent_pkts", -1, r"\$\.counters"),
    ],
)
def test_one_field_wrong(rich: bytes, path: str, value: object, where: str) -> None:
    device = Device("target")
    with pytest.raises(StateError, match=where):
        restore(device, change(rich, path, value), memory_of(rich))
    assert not any((device.gids, device.pds, device.cqs, device.srqs, device.qps, device.mrs))
    restore(device, rich, memory_of(rich))
    assert save(device) == rich


def test_envelope(rich: bytes) -> None:
    def refused(data: bytes, where: str) -> None:
        with pytest.raises(StateError, match=where):
            restore(Device("x"), data, {})

    refused(b"", "cut short")
    refused(b"?" + rich[1:], "magic")
    refused(rich + b"\0", "1 bytes follow")
    refused(rich[:-1], "cut short")
    head = struct.pack("<8sHH16s", b"SOFTRNIC", 2, 0, b"")
    refused(head + struct.pack("<I", zlib.crc32(head)), r"\$\.format")
    parts = list(unwrap(rich, KNOWN).values())
    refused(wrap(parts[1:], ""), r"\$\.sections\[1\]: missing")
    refused(wrap([*parts, parts[0]], ""), "comes twice")
    refused(wrap([*parts, Section(99, 1, 0, b"")], ""), "mandatory and not known")
    refused(wrap([parts[0]._replace(version=2), *parts[1:]], ""), "version 2 is mandatory")
    refused(wrap([parts[0]._replace(payload=b"\xc1"), *parts[1:]], ""), r"\$")
    refused(wrap([parts[0]._replace(payload=b"\x81\xa1\xff\x00"), *parts[1:]], ""), "utf-8")
    refused(wrap([parts[0]._replace(payload=b"\x91" * 5000), *parts[1:]], ""), r"\$")


def test_what_is_optional_may_be_of_the_future(rich: bytes) -> None:
    parts = [s for s in unwrap(rich, KNOWN).values() if s.ident != 6]
    future = wrap([*parts, Section(6, 2, OPTIONAL, b"?"), Section(99, 1, OPTIONAL, b"?")], "softrnic 9")
    device = Device("x")
    restore(device, future, memory_of(rich))
    assert device.counter(C.SENT_PKTS) == 0


EXTREMES: list[Any] = [
    *(0, 1, 2, 3, 255, 0xFFFFFF, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, -1),
    *(None, True, "", b"", []),
]

# --- mutations ------------------------------------------------------------------------------------------------


def mutate_tree(rng: random.Random, sections: dict[int, Any]) -> None:
    """Change, drop, repeat or swap a value somewhere."""
    at: Any = sections[rng.choice(list(sections))]
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.9:
            at = at[key]
            continue
        kind = rng.randrange(6)
        if kind == 0:
            at[key] = rng.choice(EXTREMES)
        elif kind == 1 and isinstance(at[key], int):
            changed = at[key] + rng.choice([-1, 1, 2, -0x1000, 0x1000])
            at[key] = max(-(1 << 63), min((1 << 64) - 1, changed))  # what MessagePack can say
        elif kind == 2 and isinstance(at[key], int):
            at[key] = at[key] ^ (1 << rng.randrange(24))
        elif kind == 3 and isinstance(at, list):
            at.insert(key, at[key])
        elif kind == 4:
            del at[key]
        else:
            at[key] = at[rng.choice(keys)]
        return


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)


def exercise(device: Device) -> None:
    """Let a state that was taken run: it may fail its work requests, but nothing else."""
    device.resume()
    ring, now = make_ring(4), 2_000_000
    for _ in range(6):
        while device.engine.transmit(ring, now):
            now += 1
        deadline = device.engine.next_deadline()
        now = max(now + 1, deadline or 0)
        device.engine.on_timer(now)
    for cq in device.cqs.values():
        for wc in cq.poll(1000):
            assert wc.status in WcStatus
    list(device.engine.events())


def run_mutations(data: bytes, count: int, seed: int) -> tuple[int, int]:
    """How many mutants were refused, and how many taken; those pass save and run."""
    rng = random.Random(seed)
    original, memory = tree(data), memory_of(data)
    device, refused, taken = Device("mutant"), 0, 0
    for i in range(count):
        if i % 8 == 0:
            mutant = mutate_bytes(rng, data)
        else:
            sections = copy.deepcopy(original)
            for _ in range(rng.choice([1, 1, 1, 3])):
                mutate_tree(rng, sections)
            mutant = packed(sections)
        try:
            restore(device, mutant, memory)
        except StateError:
            refused += 1
            assert not device.gids
            assert not device.qps
            continue
        taken += 1
        again = save(device)
        second = Device("again") if taken % 50 == 1 else None
        if second is not None:
            restore(second, again, memory_of(again))
            assert save(second) == again
        exercise(device)
        device = Device("mutant")
    return refused, taken


@pytest.mark.parametrize("which", ["rich", "moving"])
@pytest.mark.parametrize("count", [500, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_mutations(which: str, count: int, rich: bytes, moving: bytes) -> None:
    """Refused with a StateError, or taken as a state that runs; never anything else."""
    refused, taken = run_mutations(rich if which == "rich" else moving, count, seed=7)
    assert refused > count // 4
    assert taken > count // 50
