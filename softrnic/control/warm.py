"""Machine code before it is needed: the kernels of the data path, compiled or taken from the cache.

A kernel compiles when it is first called, which for a NIC would be with the first packet. Here each is called once on
a device that nobody uses. What is compiled lies in the cache of softrnic/jit.py and is compiled once per version.
"""

from __future__ import annotations

from netio import kernels, memory
from netio.segment import split
from softrnic.control.pump import CTL_STOP, make_ctl, run_pump
from softrnic.layout import make_ring
from softrnic.qp import admin
from softrnic.verbs import Device


def warm_pump() -> None:
    """What a NIC on a bare port runs."""
    device = Device("warm")
    ports = memory.pair()
    ctl = make_ctl()
    ctl[CTL_STOP] = 1  # one round
    with ports[0], ports[1]:
        run_pump(device.engine.tables, ports[0].tables, make_ring(1), make_ring(1), ctl, 0, 0)
    _warm_control(device)


def warm_engine() -> None:
    """What a NIC on a port with middleware runs."""
    device = Device("warm")
    engine, rx, tx = device.engine, make_ring(1), make_ring(1)
    engine.receive(rx, 0, 0)
    engine.transmit(tx, 0)
    engine.on_timer(0)
    engine.next_deadline()
    engine.has_work()
    ports = memory.pair()
    with ports[0], ports[1]:
        kernels.recv_burst(ports[0].tables, rx)
        kernels.send_burst(ports[0].tables, tx, 0)
    split(rx, 0, 0, tx, 0)
    _warm_control(device)


def _warm_control(device: Device) -> None:
    admin.doorbell(device.engine.tables, 0)
    admin.forget(device.engine.tables, 0)
    admin.to_error(device.engine.tables, 0)
