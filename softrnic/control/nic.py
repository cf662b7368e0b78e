"""A NIC: a device joined to a port and driven by a thread of its own.

    with Nic(device, port):
        ...

Decides who may touch the engine when: the pump holds the lock while it runs, `quiesced` asks it to let go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from netio.port import Port, PortTables
from softrnic.control import SPIN_NS
from softrnic.control.pump import CTL_PAUSE, CTL_STOP, make_ctl, run_pump
from softrnic.errors import IoError
from softrnic.layout import FrameRing, make_ring
from softrnic.spec import Mtu
from softrnic.verbs import Device

RX_SLOTS = 8
TX_SLOTS = 8
FAR_FUTURE_NS = 1 << 62
IPV6_UDP_BTH_BYTES = 40 + 8 + 12 + 28 + 4  # the longest headers of a packet with payload, less what never coincides


def active_mtu(link_mtu: int) -> int:
    """The largest path MTU whose packets fit an IP MTU."""
    fitting = [m.bytes for m in Mtu if m.bytes + IPV6_UDP_BTH_BYTES <= link_mtu]
    return max(fitting, default=256)


class Nic:
    """Drives `device` over `port` until closed. `spin_ns`: how long it polls, at most, before it sleeps."""

    def __init__(self, device: Device, port: Port, *, spin_ns: int = SPIN_NS) -> None:
        self.device = device
        self.port = port
        self.spin_ns = spin_ns
        self._turn = threading.Condition(threading.Lock())  # held by whoever may touch the engine
        self._holder = 0  # the thread that has the engine stand still
        self._asking = threading.Lock()
        self._askers = 0
        self._ctl = make_ctl()
        self._rx, self._tx = make_ring(RX_SLOTS), make_ring(TX_SLOTS)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        device.engine.set_offload(port.caps.max_frame, min(port.caps.max_segments, 64))
        device.fixed_sport = port.fixed_sport
        device.set_active_mtu(active_mtu(port.mtu))
        device.quiesced = self.quiesced
        device.kick = self._kick
        self._tables: PortTables | None = getattr(port, "tables", None)
        self._thread = threading.Thread(target=self._run, name=f"nic-{device.name}", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def quiesced(self) -> Iterator[None]:
        """The engine stands still inside; for a thread that has it so already, it goes on standing still."""
        if self._holder == threading.get_ident():
            yield
            return
        with self._asking:
            self._askers += 1
            self._ctl[CTL_PAUSE] = self._askers
        self._wake()
        with self._turn:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = 0
                with self._asking:
                    self._askers -= 1
                    self._ctl[CTL_PAUSE] = self._askers
                self._turn.notify_all()

    def drive(self, kernel: Callable[..., int], *args: Any) -> int:
        """Run a kernel that pumps by itself - kernel(engs, pt, rx, tx, ctl, *args) - in this thread, not in the NIC's.

        For compiled programs that poll; bare ports only.
        """
        parts = self.parts()
        with self.quiesced():
            return int(kernel(*parts, self._ctl, *args))

    @property
    def control(self) -> np.ndarray:
        """The pump's control words."""
        return self._ctl

    def parts(self) -> tuple[np.ndarray, PortTables, FrameRing, FrameRing]:
        """What a kernel that pumps needs: engine, port and both rings. Use inside `quiesced` only."""
        if self._tables is None:
            raise IoError(errno.EOPNOTSUPP, f"port {self.port.name} has middleware: no compiled pump")
        return self.device.engine.tables, self._tables, self._rx, self._tx

    def pin(self, cpu: int | None) -> None:
        """Keep the pump on one processor."""
        if cpu is not None and cpu in os.sched_getaffinity(0):
            os.sched_setaffinity(self._thread.native_id or 0, {cpu})

    def cpu_ns(self) -> int:
        """Processor time that the pump has taken so far."""
        return time.clock_gettime_ns(time.pthread_getcpuclockid(self._thread.ident or 0))

    def _kick(self) -> None:
        """A doorbell was rung: wake the pump if it sleeps."""
        if self.device.record["asleep"]:
            self._wake()

    def _wake(self) -> None:
        if self._tables is not None:
            os.eventfd_write(int(self._tables.port[0]["wake_fd"]), 1)
        else:
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        while not self._ctl[CTL_STOP]:
            with self._turn:
                self._turn.wait_for(lambda: not self._ctl[CTL_PAUSE] or self._ctl[CTL_STOP])
                if self._tables is not None:
                    self._pump_bare(self._tables)
                else:
                    self._pump_wrapped()
            self._after_burst()

    def _pump_bare(self, tables: PortTables) -> None:
        """The compiled loop, until somebody or something wants Python."""
        until = self.port.next_deadline()
        run_pump(
            self.device.engine.tables, tables, self._rx, self._tx, self._ctl, self.spin_ns,
            FAR_FUTURE_NS if until is None else until,
        )  # fmt: skip

    def _after_burst(self) -> None:
        """What only Python can do: events, and the port's slow frames."""
        self.device.dispatch_events()
        service = getattr(self.port, "service", None)
        if service is not None:
            service(time.monotonic_ns())

    def _pump_wrapped(self) -> None:
        """The same loop over a port with middleware, one round per call into each; returns when idle."""
        engine, port = self.device.engine, self.port
        now = time.monotonic_ns()
        n = port.recv_burst(self._rx, now)
        engine.receive(self._rx, n, now)  # of nothing too: it compiles before the first packet, not while a peer waits
        engine.on_timer(now)
        made = engine.transmit(self._tx, now)
        if made:
            port.send_burst(self._tx, made, now)
        if n == 0 and made == 0:
            self._sleep_wrapped(now)

    def _sleep_wrapped(self, now: int) -> None:
        record = self.device.record
        record["asleep"] = 1
        if not self.device.engine.has_work() and not self._ctl[CTL_PAUSE]:
            deadlines = [d for d in (self.device.engine.next_deadline(), self.port.next_deadline()) if d is not None]
            timeout = max(0.0, (min(deadlines) - now) / 1e9) if deadlines else 1.0
            ready, _, _ = select.select([self.port.fileno(), self._wake_fd], [], [], min(timeout, 1.0))
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
        record["asleep"] = 0

    def close(self) -> None:
        """Stop the thread and close the port; the device lives on, off the wire."""
        if self._ctl[CTL_STOP]:
            return
        self._ctl[CTL_STOP] = 1
        self._wake()
        with self._turn:
            self._turn.notify_all()
        self._thread.join()
        self.device.quiesced = contextlib.nullcontext
        self.device.kick = _no_kick
        self.port.close()
        os.close(self._wake_fd)

    def __enter__(self) -> Nic:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _no_kick() -> None:
    """Nobody drives the engine."""
