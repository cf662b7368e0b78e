"""Machine code before it is needed: the kernels of the data path, taken from the cache or compiled into it.

A kernel compiles when it is first called, which for a NIC would be with the first packet. `prepare` calls each once, on
a device that nobody uses. What the cache of softrnic/jit.py lacks is compiled first, about a minute once per version,
by child processes: two, because the halves of it know nothing of each other, and not here, because an exception that a
signal raises inside the compiler (Ctrl-C) is lost in its callbacks.
"""

from __future__ import annotations

import functools
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from netio import kernels, memory, segment
from softrnic import engine
from softrnic.control import pump
from softrnic.control.nic import FAR_FUTURE_NS
from softrnic.jit import JIT, cache_dir
from softrnic.layout import make_ring
from softrnic.migrate import pages, restore, save, sketch
from softrnic.migrate.stream import PAGE
from softrnic.qp import admin
from softrnic.verbs import Access, AhAttr, Device, Mtu, QpState, QpType, RecvWr, SendWr, WrOpcode


def prepare() -> None:
    """Have everything compiled that a NIC runs, on a bare port or on one with middleware."""
    if not compiled():
        _compile_apart(receive, transmit)
        _compile_apart(everything)
    everything()


def compiled() -> bool:
    """Whether `prepare` will be quick."""
    return not JIT or all(_is_cached(k) for k in (pump.run_pump, engine._receive, engine._transmit, segment.split))


def _is_cached(kernel: Any) -> bool:
    """Whether the cache has an index for this kernel."""
    code = kernel.py_func.__code__
    source = Path(code.co_filename)
    return any(Path(cache_dir(source)).glob(f"*/{source.stem}.{code.co_name}-*.nbi"))


def receive() -> None:
    """One half of the engine."""
    Device("warm").engine.receive(make_ring(1), 0, 0)


def transmit() -> None:
    """The other half."""
    Device("warm").engine.transmit(make_ring(1), 0)


def everything() -> None:
    """The whole data path, and the control path's few kernels."""
    device = Device("warm")
    tables, rx, tx = device.engine.tables, make_ring(1), make_ring(1)
    receive()
    transmit()
    device.engine.on_timer(0)
    device.engine.next_deadline()
    device.engine.has_work()
    admin.doorbell(tables, 0)
    admin.forget(tables, 0)
    admin.to_error(tables, 0)
    ctl = pump.make_ctl()
    ctl[pump.CTL_STOP] = 1  # one round
    near, far = memory.pair()
    with near, far:
        pump.run_pump(tables, near.tables, rx, tx, ctl, 0, FAR_FUTURE_NS)
        kernels.recv_burst(near.tables, rx)
        kernels.send_burst(near.tables, tx, 0)
    segment.split(rx, 0, 0, tx, 0)
    paging(device)


def paging(device: Device) -> None:
    """What a resolver calls while the engine stands still."""
    with device.create_space(paged=True) as space:
        space.add_slot(0, bytearray(space.page_size))
        space.resolve(0, 1)
        space.invalidate(0, 1)
        space.refuse(0, 1)
        space.prefetch(0, 1)
        space.look_again()
        space.start_tracking()
        space.read_and_clear()


_DIE_WITH_PARENT = "import ctypes; ctypes.CDLL(None).prctl(1, 9)"  # PR_SET_PDEATHSIG: when we cannot end it ourselves


class _NoSource:
    """Is not asked for anything."""

    def request(self, addr: int, length: int, urgent: bool) -> None:
        """Nothing is on its way."""


@functools.cache
def moving() -> None:
    """What saving and restoring need, once per process: it would else be loaded during the first pause."""
    one, other = Device("warm"), Device("warm")
    mac = bytes([2, 0, 0, 0, 0, 1])
    one.add_gid("192.0.2.1", mac)
    pd, cq = one.alloc_pd(), one.create_cq(1)
    memory = pd.reg_mr(np.zeros(PAGE + 1, np.uint8))
    qp = pd.create_qp(QpType.RC, cq, cq)
    qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=Access(0))
    path = {"ah": AhAttr("192.0.2.2", 0, mac), "path_mtu": Mtu.MTU_256, "dqpn": qp.qpn, "rq_psn": 0}
    qp.modify(QpState.RTR, **path, max_dest_rd_atomic=1, min_rnr_timer=0)
    qp.modify(QpState.RTS, sq_psn=0, timeout=0, retry_cnt=0, rnr_retry=0, max_rd_atomic=1)
    qp.post_recv(RecvWr([memory.sge()]))
    qp.post_send(SendWr(WrOpcode.SEND, [memory.sge()]))
    drawn = sketch.draw(one, {})
    one.suspend("rnr")
    save(one)
    made = restore(other, drawn.data, lambda region: np.zeros(region.length, np.uint8))
    sketch.fill(other, made, drawn.fill_in(one) or b"")
    other.space.page_source = _NoSource()
    room = mmap.mmap(-1, 2 * PAGE)
    address = int(np.frombuffer(room, np.uint8).ctypes.data)
    other.space.resolve(address, PAGE)
    other.space.land(address + PAGE, bytes(PAGE))
    other.space.page_source = None
    other.resume()
    for device in (one, other):
        device.destroy()
    data = np.zeros(PAGE + 1, np.uint8)
    pages.crcs(data)
    pages.zero_pages(data)
    pages.differing_pages(data, data)


def _compile_apart(*parts: Any) -> None:
    """Call each part in a process of its own. One that fails says nothing: this process will, when it tries itself."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = []
    try:
        for part in parts:
            code = f"{_DIE_WITH_PARENT}; from {__name__} import {part.__name__} as part; part()"
            command = [sys.executable, "-c", code]
            # in a session of its own, so that Ctrl-C interrupts us and we end it
            child = subprocess.Popen(  # noqa: S603
                command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            children.append(child)
        for child in children:
            child.wait()
    finally:
        for child in children:
            child.kill()
            child.wait()
