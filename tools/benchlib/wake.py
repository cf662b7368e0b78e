"""How long one wake-up takes: a pump that sleeps in the kernel, from the doorbell or from the frame until it runs.

Beside it the same with nothing but two threads and an eventfd, which is what this machine can do. Whoever wakes looks
at a word in memory until the sleeper changes it. Each has a processor to itself: the scheduler likes to put the woken
thread where its waker runs, and there it would wait until the waker, who looks without end, has had its turn (4 ms).
"""

from __future__ import annotations

import os
import threading

import numpy as np
from numba import types

from benchlib.scale import Many
from netio.libc import ppoll, read, write
from softrnic.control.fabric import fabric
from softrnic.control.host import Host
from softrnic.control.pump import monotonic_ns, pump_once
from softrnic.jit import addr_of, full_fence, i64, inline, kernel, ld_acq64, pause, st32, st64, st_rel64
from softrnic.layout import ENGINE
from softrnic.qp.queues import poll_count, post_one_sided, publish
from softrnic.spec import SendFlags, WrOpcode

IDLE_NS = 5_000_000  # before each wake-up
SIZE = 8
_ASLEEP = int(ENGINE.fields["asleep"][1])
_SIGNALED, _WRITE = int(SendFlags.SIGNALED), int(WrOpcode.RDMA_WRITE)
_GIVE_UP_NS = 1_000_000_000
_nanosleep = types.ExternalFunction("nanosleep", types.int32(types.int64, types.int64))


@inline
def _idle(scratch):
    """Leave both processors alone for a while."""
    st64(addr_of(scratch), 0)
    st64(addr_of(scratch) + 8, IDLE_NS)
    _nanosleep(addr_of(scratch), 0)


@inline
def _until_awake(ctl, asleep, begun):
    """When the word at `asleep` has become 0."""
    now = monotonic_ns(ctl)
    while ld_acq64(asleep) != 0 and now - begun < _GIVE_UP_NS:
        pause()
        now = monotonic_ns(ctl)
    return now


@kernel
def _by_doorbell(engs, ctl, scratch, wake_fd, qp_index, local, lkey, remote, rkey, times):
    """Post a WRITE and ring: until the own pump runs."""
    eng = engs[0]
    cq = eng["cqs"][i64(eng["qps"][qp_index]["scq"])]
    asleep = addr_of(engs) + _ASLEEP
    for i in range(len(times)):
        _idle(scratch)
        while ld_acq64(asleep) == 0:
            pause()
        st64(addr_of(scratch) + 16, 1)
        begun = monotonic_ns(ctl)
        post_one_sided(eng, eng["qps"][qp_index], _WRITE, _SIGNALED, i, local, SIZE, lkey, remote, rkey)
        publish(eng, qp_index)
        full_fence()
        write(wake_fd, addr_of(scratch) + 16, 8)
        times[i] = _until_awake(ctl, asleep, begun) - begun
        while poll_count(eng, cq)[0] == 0 and monotonic_ns(ctl) - begun < _GIVE_UP_NS:
            pause()


@kernel
def _by_frame(engs, pt, rx, tx, ctl, peers, scratch, qp_index, local, lkey, remote, rkey, times):
    """Send a WRITE, pumping in this thread: until the peer's pump runs."""
    eng = engs[0]
    cq = eng["cqs"][i64(eng["qps"][qp_index]["scq"])]
    asleep = addr_of(peers) + _ASLEEP
    for i in range(len(times)):
        _idle(scratch)
        while ld_acq64(asleep) == 0:
            pause()
        begun = monotonic_ns(ctl)
        post_one_sided(eng, eng["qps"][qp_index], _WRITE, _SIGNALED, i, local, SIZE, lkey, remote, rkey)
        publish(eng, qp_index)
        pump_once(eng, pt, rx, tx, begun)
        times[i] = _until_awake(ctl, asleep, begun) - begun
        while poll_count(eng, cq)[0] == 0 and monotonic_ns(ctl) - begun < _GIVE_UP_NS:
            pump_once(eng, pt, rx, tx, monotonic_ns(ctl))


@kernel
def _sleeper(fd, words, scratch, count):
    """Say that it sleeps, sleep, say that it does not."""
    poll = addr_of(scratch)
    st32(poll, fd)
    st32(poll + 4, 1)
    for _ in range(count):
        st_rel64(addr_of(words), 1)
        ppoll(poll, 1, 0, 0)
        st_rel64(addr_of(words), 0)
        read(fd, poll + 8, 8)
        while ld_acq64(addr_of(words) + 8) == 0:
            pause()
        st_rel64(addr_of(words) + 8, 0)


@kernel
def _waker(fd, words, ctl, scratch, times):
    """The other side of it."""
    for i in range(len(times)):
        _idle(scratch)
        while ld_acq64(addr_of(words)) == 0:
            pause()
        st64(addr_of(scratch) + 16, 1)
        begun = monotonic_ns(ctl)
        write(fd, addr_of(scratch) + 16, 8)
        times[i] = _until_awake(ctl, addr_of(words), begun) - begun
        st_rel64(addr_of(words) + 8, 1)


def wake_ups(wire: str, *, count: int = 200) -> dict[str, float]:
    """Medians, us."""
    before = os.sched_getaffinity(0)
    with fabric(wire) as hosts:
        for host in hosts:
            host.nic.pin(max(before))
        os.sched_setaffinity(0, {min(before)})
        try:
            return {"two threads and an eventfd, us": _raw(count, max(before)), **_pumps(hosts, count)}
        finally:
            os.sched_setaffinity(0, before)


def _pumps(hosts: tuple[Host, Host], count: int) -> dict[str, float]:
    """By doorbell and by frame."""
    many = Many(hosts, 64)
    many.grow(1)
    a, b = (host.nic for host in hosts)
    ctl, scratch, times = np.zeros(8, np.int64), np.zeros(8, np.int64), np.zeros(count, np.int64)
    where = (many.qps[0][0].index, many.mrs[0].addr, many.mrs[0].lkey, many.mrs[1].addr, many.mrs[1].rkey)
    with a.quiesced():
        engs, port, rx, tx = a.parts()
        wake_fd = int(port.port[0]["wake_fd"])
    for n in (2, count):  # first a few: compile, and touch the memory
        _by_doorbell(engs, ctl, scratch, wake_fd, *where, times[:n])
    found = {"doorbell to pump, us": float(np.median(times)) / 1000}
    with a.quiesced():
        for n in (2, count):
            _by_frame(engs, port, rx, tx, ctl, b.device.engine.tables, scratch, *where, times[:n])
    return {**found, "frame to pump, us": float(np.median(times)) / 1000}


def _pinned(cpu: int, fd: int, words: np.ndarray, count: int) -> None:
    os.sched_setaffinity(0, {cpu})
    _sleeper(fd, words, np.zeros(8, np.int64), count)


def _raw(count: int, cpu: int) -> float:
    """Median, us."""
    words, ctl = np.zeros(2, np.int64), np.zeros(8, np.int64)
    fd = os.eventfd(0)
    try:
        for n in (2, count):
            times = np.zeros(n, np.int64)
            sleeper = threading.Thread(target=_pinned, args=(cpu, fd, words, n))
            sleeper.start()
            _waker(fd, words, ctl, np.zeros(8, np.int64), times)
            sleeper.join()
    finally:
        os.close(fd)
    return float(np.median(times)) / 1000
