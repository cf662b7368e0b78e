"""Making, naming and destroying verbs objects: errno of every misuse, who keeps whom alive, and nothing leaks."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from softrnic import layout
from softrnic.errors import VerbsError
from softrnic.slab import Numbers
from softrnic.verbs import (
    Access,
    AhAttr,
    Cq,
    Device,
    EventType,
    Mtu,
    Pd,
    Qp,
    QpCap,
    QpState,
    QpType,
    RecvWr,
    SendWr,
    Sge,
    Srq,
    WrOpcode,
)
from tests.pairs import ALL_ACCESS, MAC

RC, UC, UD, GSI = QpType.RC, QpType.UC, QpType.UD, QpType.GSI
AH = AhAttr("10.0.0.2", 0, MAC[1])


@pytest.fixture
def dev() -> Iterator[Device]:
    with Device() as device:
        device.add_gid("10.0.0.1", MAC[0])
        yield device


@pytest.fixture
def pd(dev: Device) -> Pd:
    return dev.alloc_pd()


@pytest.fixture
def cq(dev: Device) -> Cq:
    return dev.create_cq(16)


@contextmanager
def raises(number: int, says: str | None = None) -> Iterator[None]:
    with pytest.raises(VerbsError, match=says) as error:
        yield
    assert error.value.errno == number
    assert errno.errorcode[number] in str(error.value)


def books(device: Device) -> dict[str, Any]:
    """All that a device has handed out and not yet got back."""
    slabs = {name: [sorted(level) for level in slab._free] for name, slab in vars(device.slabs).items()}
    pools = {}
    for name, pool in vars(device.pools).items():
        pools[name] = set(range(pool._fresh)) - set(pool._freed)
    numbers = [sorted(n._used) for n in (device.cq_numbers, device.srq_numbers)]
    maps = {name: sorted(getattr(device, name)) for name in ("pds", "cqs", "srqs", "qps", "mrs")}
    hashes = {name: int((device.record[name]["key"] != 0).sum()) for name in ("qpn_hash", "key_hash")}
    return copy.deepcopy({"slabs": slabs, "pools": pools, "numbers": numbers, "maps": maps, "hashes": hashes})


# --- limits of creation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cqe", [0, -1, (1 << 17) + 1])
def test_cq_size(dev: Device, cqe: int) -> None:
    """ibv_create_cq: EINVAL."""
    before = books(dev)
    with raises(errno.EINVAL, "cqe"):
        dev.create_cq(cqe)
    assert books(dev) == before


@pytest.mark.parametrize(("cqe", "size"), [(1, 1), (2, 2), (3, 4), (17, 32), (1 << 17, 1 << 17)])
def test_cq_has_at_least_what_was_asked_for(dev: Device, cqe: int, size: int) -> None:
    """ibv_create_cq: the capacity may be larger."""
    assert dev.create_cq(cqe).size == size


@pytest.mark.parametrize("change", [{"max_wr": 0}, {"max_wr": (1 << 15) + 1}, {"max_sge": 0}, {"max_sge": 33}])
def test_srq_size(dev: Device, pd: Pd, change: dict[str, int]) -> None:
    """ibv_create_srq: EINVAL names what is wrong."""
    before = books(dev)
    with raises(errno.EINVAL, next(iter(change))):
        pd.create_srq(**change)
    assert books(dev) == before


@pytest.mark.parametrize("limit", [-1, 65])
def test_srq_limit(dev: Device, pd: Pd, limit: int) -> None:
    """ibv_create_srq and ibv_modify_srq: EINVAL for a limit beyond the queue."""
    before = books(dev)
    with raises(errno.EINVAL, "limit"):
        pd.create_srq(64, limit=limit)
    assert books(dev) == before
    with raises(errno.EINVAL, "limit"):
        pd.create_srq(64).modify(limit)


@pytest.mark.parametrize("name", ["max_send_wr", "max_recv_wr", "max_send_sge", "max_recv_sge", "max_inline_data"])
def test_qp_capacities(dev: Device, pd: Pd, cq: Cq, name: str) -> None:
    """ibv_create_qp: EINVAL names the capacity; the limit itself is allowed."""
    top = {"max_send_wr": 1 << 15, "max_recv_wr": 1 << 15, "max_inline_data": 512}.get(name, layout.MAX_SGE)
    before = books(dev)
    for wrong in (-1, top + 1):
        with raises(errno.EINVAL, name):
            pd.create_qp(RC, cq, cq, QpCap(**{name: wrong}))
    assert books(dev) == before
    with pd.create_qp(RC, cq, cq, QpCap(**{name: top})) as qp:
        assert getattr(qp.cap, name) >= top


def test_queues_have_at_least_one_place(pd: Pd, cq: Cq) -> None:
    """A capacity of 0 is legal; what is reported can be used."""
    qp = pd.create_qp(RC, cq, cq, QpCap(0, 0, 0, 0, 0))
    assert qp.cap.max_send_wr >= 1
    qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=Access(0))
    for _ in range(qp.cap.max_recv_wr):
        qp.post_recv(RecvWr())
    with raises(errno.ENOMEM, "full"):
        qp.post_recv(RecvWr())


def exhausted(device: Device, name: str, make: Callable[[], Any]) -> None:
    """With nothing left in one slab, `make` fails with ENOMEM and takes nothing."""
    slab = getattr(device.slabs, name)
    free, slab._free = slab._free, [set() for _ in slab._free]
    before = books(device)
    try:
        with raises(errno.ENOMEM):
            make()
        assert books(device) == before
    finally:
        slab._free = free
    make()


@pytest.mark.parametrize("name", ["wqes", "rwqes", "sges"])
def test_no_memory_for_a_qp(dev: Device, pd: Pd, cq: Cq, name: str) -> None:
    """ENOMEM, and what was already claimed is given back."""
    exhausted(dev, name, lambda: pd.create_qp(RC, cq, cq, qpn=77))
    assert (pd.users, cq.users) == (1, 2)


@pytest.mark.parametrize("name", ["rwqes", "sges"])
def test_no_memory_for_an_srq(dev: Device, pd: Pd, name: str) -> None:
    exhausted(dev, name, lambda: pd.create_srq(64, 2, srqn=3))


def test_no_memory_for_a_cq(dev: Device) -> None:
    exhausted(dev, "cqes", lambda: dev.create_cq(64, cqn=5))


def test_too_many_qps(dev: Device, pd: Pd, cq: Cq) -> None:
    """ENOMEM when the table is full."""
    dev.pools.qps._fresh = dev.pools.qps._size - 1
    with pd.create_qp(RC, cq, cq):
        before = books(dev)
        with raises(errno.ENOMEM, "QPs"):
            pd.create_qp(RC, cq, cq)
        assert books(dev) == before
    pd.create_qp(RC, cq, cq)


# --- everything that is made can be unmade ----------------------------------------------------------------------


def test_nothing_leaks() -> None:
    """Whatever order things are made and destroyed in, the books are the same afterwards."""
    with Device() as dev:
        dev.add_gid("10.0.0.1", MAC[0])
        empty = books(dev)
        pd, cq = dev.alloc_pd(), dev.create_cq(100)
        srq = pd.create_srq(10, 3, srqn=9)
        qps = [
            pd.create_qp(RC, cq, cq, QpCap(5, 6, 7, 8, 100)),
            pd.create_qp(UC, cq, cq, srq=srq),
            pd.create_qp(GSI, cq, cq),
            pd.create_qp(UD, cq, cq, qpn=0x5000),
        ]
        qps[0].modify(QpState.INIT, pkey_index=0, port=1, access_flags=Access(0))
        qps[0].modify(QpState.RTR, ah=AH, path_mtu=Mtu.MTU_256, dqpn=1, rq_psn=0, max_dest_rd_atomic=5, min_rnr_timer=0)
        mr, mw, ah = pd.reg_mr(bytearray(8), key=0x77), pd.alloc_mw(2), pd.create_ah(AH)
        cq.resize(300)
        for obj in (qps[2], qps[0], mw, mr, qps[3], qps[1], srq, cq, ah):
            getattr(obj, {"Mr": "dereg", "Mw": "dealloc"}.get(type(obj).__name__, "destroy"))()
        pd.dealloc()
        assert books(dev) == empty


def test_close_destroys_everything_in_order(dev: Device) -> None:
    """Windows before regions, QPs before SRQs and CQs, whatever refers to what."""
    pd, other = dev.alloc_pd(), dev.alloc_pd()
    cq = dev.create_cq(4)
    srq = pd.create_srq(4)
    qp = pd.create_qp(RC, cq, cq, srq=srq)
    other.create_qp(UD, cq, cq)
    mr, mw = pd.reg_mr(bytearray(8), ALL_ACCESS), pd.alloc_mw(1)
    record = dev.record["mrs"]
    record[mw.index]["valid"], record[mw.index]["parent"], record[mr.index]["windows"] = 1, mr.index, 1
    pd.create_ah(AH)
    dev.close()
    assert (dev.pds, dev.cqs, dev.srqs, dev.qps, dev.mrs) == ({}, {}, {}, {}, {})
    for obj in (pd, other):
        obj.dealloc()
    for thing in (cq, srq, qp):
        thing.destroy()
    mw.dealloc()
    mr.dereg()
    dev.close()


def test_destroying_twice(dev: Device, pd: Pd, cq: Cq) -> None:
    """The second time nothing happens, even if the place has a new owner."""
    qp, mr, mw = pd.create_qp(RC, cq, cq), pd.reg_mr(bytearray(8)), pd.alloc_mw(1)
    srq, ah, spare = pd.create_srq(4), pd.create_ah(AH), dev.create_cq(4)
    dead = [
        (qp.destroy, qp),
        (mr.dereg, mr),
        (mw.dealloc, mw),
        (srq.destroy, srq),
        (ah.destroy, ah),
        (spare.destroy, spare),
    ]
    for end, _ in dead:
        end()
    before = books(dev)
    for end, _ in dead:
        end()
    assert books(dev) == before


def test_context_managers(dev: Device) -> None:
    """Leaving the block destroys."""
    before = books(dev)
    with (
        dev.alloc_pd() as pd,
        dev.create_cq(4) as cq,
        pd.create_srq(4) as srq,
        pd.create_qp(UD, cq, cq, srq=srq),
        pd.reg_mr(bytearray(8)),
        pd.alloc_mw(2),
        pd.create_ah(AH),
    ):
        assert books(dev) != before
    assert books(dev) == before


# --- dead handles -----------------------------------------------------------------------------------------------


def test_dead_qp(dev: Device, pd: Pd, cq: Cq) -> None:
    """A destroyed QP's handle reaches nobody, least of all the QP that has its place now."""
    dead = pd.create_qp(RC, cq, cq, QpCap(4, 4))
    dead.destroy()
    dev.pools.qps._fresh = dev.pools.qps._size
    heir = pd.create_qp(RC, cq, cq, QpCap(4, 4))
    assert heir.index == dead.index
    to_rts(heir)
    with raises(errno.EINVAL):
        dead.post_send(SendWr(WrOpcode.SEND))
    with raises(errno.EINVAL):
        dead.post_recv(RecvWr())
    with raises(errno.EINVAL):
        dead.modify(QpState.ERR)
    assert heir.state == QpState.RTS
    assert int(heir.record["sq_prod"]) == int(heir.record["rq_prod"]) == 0
    assert dead.state == QpState.RESET


def test_dead_cq(dev: Device, pd: Pd) -> None:
    """A destroyed CQ is empty, and takes nothing from the CQ that has its place."""
    dead = dev.create_cq(4, cqn=9)
    dead.destroy()
    heir = dev.create_cq(4, cqn=9)
    qp = pd.create_qp(UD, heir, heir)
    qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=0)
    qp.post_recv(RecvWr([], 5))
    qp.modify(QpState.ERR)
    assert dead.poll() == []
    dead.req_notify()
    with raises(errno.EINVAL):
        dead.resize(8)
    with raises(errno.EINVAL):
        pd.create_qp(UD, dead, heir)
    assert int(dev.record["cqs"][9]["armed"]) == 0
    assert [wc.wr_id for wc in heir.poll()] == [5]


def test_dead_srq(dev: Device, pd: Pd, cq: Cq) -> None:
    dead = pd.create_srq(4, srqn=2)
    dead.destroy()
    heir = pd.create_srq(4, srqn=2)
    with raises(errno.EINVAL):
        dead.post_recv(RecvWr())
    with raises(errno.EINVAL):
        dead.modify(2)
    with raises(errno.EINVAL):
        pd.create_qp(UD, cq, cq, srq=dead)
    assert int(dev.record["srqs"][2]["prod"]) == 0
    assert heir.limit == 0


def test_dead_pd(dev: Device, cq: Cq) -> None:
    pd = dev.alloc_pd()
    pd.dealloc()
    before = books(dev)
    for make in (
        lambda: pd.reg_mr(bytearray(8)),
        lambda: pd.alloc_mw(1),
        lambda: pd.create_ah(AH),
        lambda: pd.create_srq(4),
        lambda: pd.create_qp(RC, cq, cq),
    ):
        with raises(errno.EINVAL, "domain"):
            make()
    assert books(dev) == before


def test_things_of_another_device(dev: Device, pd: Pd, cq: Cq) -> None:
    """A QP, its CQs and what is posted to it are of one device."""
    with Device("other") as other:
        other.add_gid("10.0.0.1", MAC[0])
        its_pd, its_cq = other.alloc_pd(), other.create_cq(4)
        with raises(errno.EINVAL):
            pd.create_qp(RC, its_cq, cq)
        with raises(errno.EINVAL):
            pd.create_qp(RC, cq, its_cq)
        with raises(errno.EINVAL):
            pd.create_qp(RC, cq, cq, srq=its_pd.create_srq(4))
        ud = pd.create_qp(UD, cq, cq)
        ud.modify(QpState.INIT, pkey_index=0, port=1, qkey=0)
        ud.modify(QpState.RTR)
        ud.modify(QpState.RTS, sq_psn=0)
        with raises(errno.EINVAL, "device"):
            ud.post_send(SendWr(WrOpcode.SEND, ah=its_pd.create_ah(AH)))
        rc = pd.create_qp(RC, cq, cq)
        to_rts(rc)
        with raises(errno.EINVAL, "device"):
            rc.post_send(SendWr(WrOpcode.BIND_MW, bind_mr=its_pd.reg_mr(bytearray(8)), bind_length=1))


# --- EBUSY ------------------------------------------------------------------------------------------------------


def test_pd_in_use(dev: Device, pd: Pd, cq: Cq) -> None:
    """ibv_dealloc_pd: EBUSY while anything lives in it."""
    for thing, end in (
        (pd.reg_mr(bytearray(8)), "dereg"),
        (pd.alloc_mw(1), "dealloc"),
        (pd.create_ah(AH), "destroy"),
        (pd.create_srq(4), "destroy"),
        (pd.create_qp(RC, cq, cq), "destroy"),
    ):
        with raises(errno.EBUSY):
            pd.dealloc()
        assert pd.pdn in dev.pds
        getattr(thing, end)()
    pd.dealloc()
    assert pd.pdn not in dev.pds


def test_cq_in_use(dev: Device, pd: Pd, cq: Cq) -> None:
    """ibv_destroy_cq: EBUSY while a QP uses it, for either queue."""
    other = dev.create_cq(4)
    qp = pd.create_qp(RC, cq, other)
    for used in (cq, other):
        with raises(errno.EBUSY):
            used.destroy()
    qp.destroy()
    cq.destroy()
    other.destroy()


def test_srq_in_use(pd: Pd, cq: Cq) -> None:
    """ibv_destroy_srq: EBUSY while a QP uses it."""
    srq = pd.create_srq(4)
    qp = pd.create_qp(RC, cq, cq, srq=srq)
    with raises(errno.EBUSY):
        srq.destroy()
    qp.destroy()
    srq.destroy()


def test_region_in_use(dev: Device, pd: Pd) -> None:
    """ibv_dereg_mr: EBUSY while windows are bound to it; freeing the window is unbinding it."""
    mr, mw = pd.reg_mr(bytearray(8), ALL_ACCESS), pd.alloc_mw(1)
    record = dev.record["mrs"]
    record[mw.index]["valid"], record[mw.index]["parent"], record[mr.index]["windows"] = 1, mr.index, 1
    with raises(errno.EBUSY):
        mr.dereg()
    assert mr.valid
    mw.dealloc()
    mr.dereg()


# --- numbers and keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qpn", [0, -1, 0xFFFFFF, 1 << 24])
def test_impossible_qpn(dev: Device, pd: Pd, cq: Cq, qpn: int) -> None:
    """QP numbers have 24 bits; 0 and 0xffffff are not to be had."""
    before = books(dev)
    with raises(errno.EINVAL, "QPN"):
        pd.create_qp(RC, cq, cq, qpn=qpn)
    assert books(dev) == before


def test_qpn_1_is_the_gsi(dev: Device, pd: Pd, cq: Cq) -> None:
    """QP1 is made by its type, not by its number."""
    for kind in (RC, UC, UD):
        with raises(errno.EINVAL, "QPN"):
            pd.create_qp(kind, cq, cq, qpn=1)
    with pd.create_qp(GSI, cq, cq) as gsi:
        assert gsi.qpn == 1
        with raises(errno.EEXIST, "QPN"):
            pd.create_qp(GSI, cq, cq)
    pd.create_qp(GSI, cq, cq)


def test_pinned_qpn(dev: Device, pd: Pd, cq: Cq) -> None:
    """A number chosen by the caller is taken until its QP is destroyed; automatic numbers go round it."""
    pinned = pd.create_qp(UD, cq, cq, qpn=0x13)
    before = books(dev)
    with raises(errno.EEXIST, "0x13"):
        pd.create_qp(RC, cq, cq, qpn=0x13)
    assert books(dev) == before
    qpns = [pd.create_qp(RC, cq, cq).qpn for _ in range(100)]
    assert len({*qpns, 0x13}) == 101
    with raises(errno.EEXIST):
        pd.create_qp(RC, cq, cq, qpn=qpns[50])
    pinned.destroy()
    assert pd.create_qp(RC, cq, cq, qpn=0x13).qpn == 0x13


def test_automatic_qpns_come_round(dev: Device, pd: Pd, cq: Cq) -> None:
    """After the last number the first ones come again, but for those in use; a number just freed is not the next."""
    first = [pd.create_qp(RC, cq, cq) for _ in range(3)]
    first[1].destroy()
    assert pd.create_qp(RC, cq, cq).qpn not in {qp.qpn for qp in first}
    dev._next_qpn = 0xFFFFFE
    got = [pd.create_qp(RC, cq, cq).qpn for _ in range(2)]
    assert got == [0xFFFFFE, first[1].qpn] or first[1].qpn - 1 in {qp.qpn for qp in first}
    assert all(1 < qpn < 0xFFFFFF for qpn in got)


@pytest.mark.parametrize("key", [0, -1, 1 << 32])
def test_impossible_key(dev: Device, pd: Pd, key: int) -> None:
    """Memory keys have 32 bits, and 0 is none."""
    before = books(dev)
    for make in (lambda: pd.reg_mr(bytearray(8), key=key), lambda: pd.alloc_mw(2, key=key)):
        with raises(errno.EINVAL, "key"):
            make()
    assert books(dev) == before


def test_pinned_key(dev: Device, pd: Pd) -> None:
    """Regions and windows share the keys; a key is free again with its owner."""
    mr = pd.reg_mr(bytearray(8), key=0xDEAD)
    assert (mr.lkey, mr.rkey) == (0xDEAD, 0xDEAD)
    before = books(dev)
    for make in (lambda: pd.reg_mr(bytearray(8), key=0xDEAD), lambda: pd.alloc_mw(1, key=0xDEAD)):
        with raises(errno.EEXIST, "0xdead"):
            make()
    assert books(dev) == before
    mr.dereg()
    assert pd.alloc_mw(1, key=0xDEAD).rkey == 0xDEAD


def test_automatic_keys_go_round_pinned_ones(dev: Device, pd: Pd) -> None:
    """A key handed out by the device is never one that a caller has pinned."""
    pinned = [pd.reg_mr(bytearray(1), key=(50 << 8) | low) for low in range(200)]
    automatic = [pd.reg_mr(bytearray(1)) for _ in range(300)]
    keys = [mr.lkey for mr in (*pinned, *automatic)]
    assert len(set(keys)) == len(keys)


def test_key_of_a_freed_region_does_not_come_back_at_once(pd: Pd) -> None:
    """A stale rkey must not open a new region (10.6.3.2)."""
    keys = set()
    for _ in range(200):
        mr = pd.reg_mr(bytearray(1))
        assert mr.rkey not in keys
        keys.add(mr.rkey)
        mr.dereg()


@pytest.mark.parametrize("kind", ["cq", "srq"])
def test_pinned_cq_and_srq_numbers(dev: Device, pd: Pd, kind: str) -> None:
    """EINVAL for what is no number, EEXIST for one that is taken."""
    make: Callable[[int], Any] = {
        "cq": lambda n: dev.create_cq(4, cqn=n), "srq": lambda n: pd.create_srq(4, srqn=n)
    }[kind]  # fmt: skip
    for wrong in (-1, 1 << 20):
        with raises(errno.EINVAL):
            make(wrong)
    made = make(3)
    with raises(errno.EEXIST):
        make(3)
    automatic = [dev.create_cq(4).cqn if kind == "cq" else pd.create_srq(4).srqn for _ in range(6)]
    assert len({*automatic, 3}) == 7
    made.destroy()
    make(3)


def test_number_pool_never_gives_one_number_twice() -> None:
    """Pinning, freeing and allocating in every order, down to the last number."""
    import random

    rng = random.Random(7)
    for _ in range(200):
        size = rng.randint(1, 9)
        pool, used = Numbers(0, size, "things"), set()
        for _ in range(60):
            choice = rng.random()
            if choice < 0.35:
                if len(used) == size:
                    with raises(errno.ENOMEM, "things"):
                        pool.alloc()
                else:
                    number = pool.alloc()
                    assert number not in used
                    assert 0 <= number < size
                    used.add(number)
            elif choice < 0.6:
                number = rng.randrange(size)
                if number in used:
                    with raises(errno.EEXIST, "things"):
                        pool.take(number)
                else:
                    assert pool.take(number) == number
                    used.add(number)
            elif used:
                number = rng.choice(sorted(used))
                used.discard(number)
                pool.free(number)


# --- regions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", [Access.LOCAL_WRITE, Access.LOCAL_WRITE | Access.REMOTE_WRITE])
def test_read_only_buffer(dev: Device, pd: Pd, access: Access) -> None:
    """EACCES where the device could write; reading is fine."""
    before = books(dev)
    with raises(errno.EACCES):
        pd.reg_mr(b"constant", access)
    with raises(errno.EACCES):
        pd.alloc_mr(b"constant")
    assert books(dev) == before
    pd.reg_mr(b"constant", Access.REMOTE_READ)


@pytest.mark.parametrize("access", [Access.REMOTE_WRITE, Access.REMOTE_ATOMIC])
def test_remote_write_needs_local_write(pd: Pd, access: Access) -> None:
    """11.2.8.2, ibv_reg_mr: EINVAL."""
    with raises(errno.EINVAL, "LOCAL_WRITE"):
        pd.reg_mr(bytearray(8), access)


@pytest.mark.parametrize("access", [1 << 30, -1])
def test_unknown_access(pd: Pd, access: int) -> None:
    with raises(errno.EINVAL, "access"):
        pd.reg_mr(bytearray(8), access)  # type: ignore[arg-type]


@pytest.mark.parametrize("iova", [-1, (1 << 63) - 8, 1 << 63, 1 << 64])
def test_iova_that_wraps(pd: Pd, iova: int) -> None:
    with raises(errno.EINVAL, "iova"):
        pd.reg_mr(bytearray(8), iova=iova)
    pd.reg_mr(bytearray(8), iova=(1 << 63) - 1 - 8)


def test_zero_based(pd: Pd) -> None:
    """IBV_ACCESS_ZERO_BASED: addresses count from 0."""
    mr = pd.reg_mr(bytearray(8), Access.LOCAL_WRITE | Access.ZERO_BASED)
    assert mr.sge(3, 2) == Sge(3, 2, mr.lkey)


@pytest.mark.parametrize("window", [(-1, 1), (0, 9), (8, 1), (9, 0), (0, -1)])
def test_sge_outside(pd: Pd, window: tuple[int, int]) -> None:
    mr = pd.reg_mr(bytearray(8))
    with raises(errno.EINVAL):
        mr.sge(*window)


def test_sge_inside(pd: Pd) -> None:
    mr = pd.reg_mr(bytearray(8), iova=0x1000)
    assert mr.sge() == Sge(0x1000, 8, mr.lkey)
    assert mr.sge(8) == Sge(0x1008, 0, mr.lkey)


def test_buffer_is_kept(pd: Pd) -> None:
    """The region holds its buffer: it can neither vanish nor move."""
    buffer = bytearray(8)
    mr = pd.reg_mr(buffer)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    mr.dereg()
    buffer.extend(b"more")


def test_what_is_no_buffer(dev: Device, pd: Pd) -> None:
    """Python's own complaint, and nothing taken."""
    before = books(dev)
    with pytest.raises(TypeError):
        pd.reg_mr("text")
    with raises(errno.EINVAL, "contiguous"):
        pd.reg_mr(memoryview(bytearray(8))[::2])
    with raises(errno.EINVAL, "empty"):
        pd.reg_mr(bytearray())
    assert books(dev) == before


@pytest.mark.parametrize("kind", [0, 3, "1"])
def test_window_types(pd: Pd, kind: Any) -> None:
    with raises(errno.EINVAL, "type"):
        pd.alloc_mw(kind)


# --- addresses ----------------------------------------------------------------------------------------------------


def test_gid_table(dev: Device) -> None:
    """Indices are reused lowest first; the table has an end."""
    assert [dev.add_gid(f"10.0.1.{i}", MAC[0]) for i in range(3)] == [1, 2, 3]
    dev.del_gid(2)
    assert dev.add_gid("fd00::5", MAC[0], vlan=7) == 2
    gid = dev.query_gid(2)
    assert (str(gid.ip), gid.vlan) == ("fd00::5", 7)
    with raises(errno.EINVAL):
        dev.query_gid(9)
    with raises(errno.EINVAL):
        dev.del_gid(9)
    for i in range(layout.MAX_GID - 4):
        dev.add_gid(f"10.2.{i >> 8}.{i & 255}", MAC[0])
    with raises(errno.ENOSPC):
        dev.add_gid("10.3.0.0", MAC[0])


@pytest.mark.parametrize(
    "wrong", [{"mac": b"12345"}, {"mac": bytes(7)}, {"vlan": 0}, {"vlan": 4095}, {"vlan": -1}, {"ip": "10.0.0"}]
)
def test_wrong_gid(dev: Device, wrong: dict[str, Any]) -> None:
    before = dict(dev.gids)
    with raises(errno.EINVAL):
        dev.add_gid(**{"ip": "10.0.0.9", "mac": MAC[0], **wrong})
    assert dev.gids == before


def test_pinned_gid_index(dev: Device) -> None:
    assert dev.add_gid("10.0.0.5", MAC[0], index=200) == 200
    for wrong in (200, 0, -1, layout.MAX_GID):
        with raises(errno.EINVAL):
            dev.add_gid("10.0.0.6", MAC[0], index=wrong)


def test_address_handle_without_a_mac(dev: Device, pd: Pd) -> None:
    """EHOSTUNREACH without anybody to ask; else the answer is used, for IPv4-mapped GIDs as for IPv4."""
    attr = AhAttr("::ffff:10.0.0.2", 0)
    with raises(errno.EHOSTUNREACH):
        pd.create_ah(attr)
    asked = []
    dev.resolve_mac = lambda gid, ip: asked.append((gid.index, str(ip))) or MAC[1]
    ah = pd.create_ah(attr)
    assert asked == [(0, "10.0.0.2")]
    assert dev.record["avs"][ah.index]["hdr"][:6].tobytes() == MAC[1]


# --- posting ------------------------------------------------------------------------------------------------------


def to_rts(qp: Qp) -> None:
    qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=ALL_ACCESS)
    qp.modify(QpState.RTR, ah=AH, path_mtu=Mtu.MTU_256, dqpn=7, rq_psn=0, max_dest_rd_atomic=1, min_rnr_timer=0)
    qp.modify(QpState.RTS, sq_psn=0, timeout=1, retry_cnt=1, rnr_retry=1, max_rd_atomic=1)


@pytest.fixture
def qp(pd: Pd, cq: Cq) -> Qp:
    made = pd.create_qp(RC, cq, cq, QpCap(4, 4, 2, 2, 32))
    to_rts(made)
    return made


@pytest.mark.parametrize("state", [QpState.RESET, QpState.INIT, QpState.RTR])
def test_post_send_too_early(pd: Pd, cq: Cq, state: QpState) -> None:
    """10.8.2: EINVAL before RTS."""
    qp = pd.create_qp(UD, cq, cq)
    for step, attr in ((QpState.INIT, {"pkey_index": 0, "port": 1, "qkey": 0}), (QpState.RTR, {})):
        if step <= state:
            qp.modify(step, **attr)
    with raises(errno.EINVAL, state.name):
        qp.post_send(SendWr(WrOpcode.SEND))


def test_post_recv_too_early(pd: Pd, cq: Cq) -> None:
    """10.8.2: EINVAL in RESET."""
    with raises(errno.EINVAL, "RESET"):
        pd.create_qp(RC, cq, cq).post_recv(RecvWr())


def test_full_send_queue(qp: Qp) -> None:
    """ENOMEM; those posted before stay posted, as ibv_post_send does it."""
    with raises(errno.ENOMEM, "full"):
        qp.post_send([SendWr(WrOpcode.SEND, wr_id=i) for i in range(6)])
    assert int(qp.record["sq_prod"]) == 4


def test_full_receive_queue(qp: Qp) -> None:
    with raises(errno.ENOMEM, "full"):
        qp.post_recv([RecvWr([], i) for i in range(6)])
    assert int(qp.record["rq_prod"]) == 4


def test_full_srq(pd: Pd) -> None:
    srq: Srq = pd.create_srq(4)
    with raises(errno.ENOMEM, "full"):
        srq.post_recv([RecvWr([], i) for i in range(6)])


def test_too_many_sges(pd: Pd, qp: Qp) -> None:
    sges = [Sge(0, 0, 0)] * 3
    with raises(errno.EINVAL, "SGE"):
        qp.post_send(SendWr(WrOpcode.SEND, sges))
    with raises(errno.EINVAL, "SGE"):
        qp.post_recv(RecvWr(sges))
    with raises(errno.EINVAL, "SGE"):
        pd.create_srq(4, 2).post_recv(RecvWr(sges))
    assert int(qp.record["sq_prod"]) == int(qp.record["rq_prod"]) == 0


def test_too_much_inline(qp: Qp) -> None:
    qp.post_send(SendWr(WrOpcode.SEND, inline=bytes(32)))
    with raises(errno.EINVAL, "inline"):
        qp.post_send(SendWr(WrOpcode.SEND, inline=bytes(33)))
    assert int(qp.record["sq_prod"]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"wr_id": 1 << 64}, {"wr_id": -1}, {"rkey": 1 << 32}, {"imm": -1}, {"imm": 1 << 32}, {"opcode": 256},
        {"sges": [Sge(0, 1 << 32, 0)]}, {"sges": [Sge(0, -1, 0)]}, {"sges": [Sge(0, 1, 1 << 32)]},
        {"sges": [Sge(1 << 64, 1, 1)]},
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit(qp: Qp, wrong: dict[str, Any]) -> None:
    """EINVAL, and nothing is posted."""
    with raises(errno.EINVAL):
        qp.post_send(SendWr(**{"opcode": WrOpcode.SEND, **wrong}))
    assert int(qp.record["sq_prod"]) == 0


@pytest.mark.parametrize("wr", [RecvWr([], 1 << 64), RecvWr([Sge(0, 1 << 32, 0)]), RecvWr([Sge(1 << 64, 1, 0)])])
def test_receives_that_do_not_fit(pd: Pd, qp: Qp, wr: RecvWr) -> None:
    srq = pd.create_srq(4)
    for queue in (qp, srq):
        with raises(errno.EINVAL):
            queue.post_recv(wr)
    assert int(qp.record["rq_prod"]) == 0


# --- events -------------------------------------------------------------------------------------------------------


def test_async_events_name_their_element(dev: Device, pd: Pd, cq: Cq) -> None:
    """ibv_get_async_event."""
    srq, qp = pd.create_srq(4), pd.create_qp(RC, cq, cq)
    events = dev.record["events"]
    noted = [(EventType.CQ_ERR, cq), (EventType.SRQ_LIMIT_REACHED, srq), (EventType.QP_FATAL, qp)]
    for i, (kind, element) in enumerate(noted):
        events[i]["type"], events[i]["index"] = kind, element.index
    dev.record["event_prod"] = 3
    dev.dispatch_events()
    assert [dev.get_async_event() for _ in range(4)] == [*noted, None]


def test_no_event_for_the_dead(dev: Device, pd: Pd, cq: Cq) -> None:
    """An event of a QP that is destroyed before it is fetched is of no use to anybody (10.2.4.4: ibv_destroy_qp)."""
    qp = pd.create_qp(RC, cq, cq)
    dev.record["events"][0]["type"], dev.record["events"][0]["index"] = EventType.QP_FATAL, qp.index
    dev.record["event_prod"] = 1
    qp.destroy()
    dev.dispatch_events()
    assert dev.get_async_event() is None
