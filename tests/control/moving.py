"""Hosts on a switch, a function with traffic on one of them, and a place for it on another."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from netio.arp import Neighbours
from netio.middleware import put_frame
from netio.switch import MemorySwitch
from softrnic.control import warm
from softrnic.control.migration import Arrival, Arrivals, Departure, Owner, dial_unix, listen_unix
from softrnic.control.nic import Nic
from softrnic.layout import make_ring
from softrnic.migrate import stream
from softrnic.migrate.stream import Piece
from softrnic.verbs import Access, AhAttr, Cq, Device, Mr, Mtu, Pd, Qp, QpCap, QpState, QpType, SendWr, WrOpcode

SIZE = 1 << 16
ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC
MOVING_MAC, PEER_MAC = bytes([2, 0, 0, 0, 2, 1]), bytes([2, 0, 0, 0, 2, 2])
MOVING_IP, PEER_IP = "10.0.0.1", "10.0.0.2"
SECONDS = 60.0
TAIL = 8 * 4096  # bytes at the end of the function's memory that its peer leaves alone


class End:
    """A device with one QP, and memory."""

    def __init__(self, device: Device, ip: str, mac: bytes, size: int = SIZE) -> None:
        self.device = device
        device.add_gid(ip, mac)
        self.pd: Pd = device.alloc_pd()
        self.cq: Cq = device.create_cq(256)
        self.buf = np.zeros(size, np.uint8)
        self.mr: Mr = self.pd.reg_mr(self.buf, ACCESS)
        self.qp: Qp = self.pd.create_qp(QpType.RC, self.cq, self.cq, QpCap(64, 64, 2, 2, 64))


def connect(a: End, b: End) -> None:
    for end in (a, b):
        end.qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=ACCESS)
    for end, ip, mac, peer, psn in ((a, PEER_IP, PEER_MAC, b, 7), (b, MOVING_IP, MOVING_MAC, a, 9)):
        end.qp.modify(
            QpState.RTR, ah=AhAttr(ip, 0, mac), path_mtu=Mtu.MTU_1024, dqpn=peer.qp.qpn, rq_psn=psn,
            max_dest_rd_atomic=8, min_rnr_timer=6,
        )  # fmt: skip
    for end, psn in ((a, 9), (b, 7)):
        end.qp.modify(QpState.RTS, sq_psn=psn, timeout=17, retry_cnt=7, rnr_retry=7, max_rd_atomic=8)


class Traffic:
    """The peer writes into the moving function's memory and reads it back, for as long as it is let; counts errors."""

    def __init__(self, peer: End, mr: Mr, seed: int = 1) -> None:
        self.peer, self.iova, self.rkey, self.size = peer, mr.iova, mr.rkey, max(1, mr.length - TAIL)
        self.image = np.zeros(mr.length, np.uint8)
        """What the function's memory must hold."""
        self.rounds = 0
        self.wrong: list[str] = []
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        qp, cq, mr, buf = self.peer.qp, self.peer.cq, self.peer.mr, self.peer.buf
        half = len(buf) // 2
        while not self._stop.is_set() and not self.wrong:
            length = int(self._rng.integers(1, min(half, self.size) + 1))
            offset = int(self._rng.integers(0, self.size - length + 1))
            data = self._rng.integers(0, 256, length, np.uint8)
            buf[:length] = data
            to: dict[str, Any] = {"remote_addr": self.iova + offset, "rkey": self.rkey}
            qp.post_send([
                SendWr(WrOpcode.RDMA_WRITE, [mr.sge(0, length)], 1, **to),
                SendWr(WrOpcode.RDMA_READ, [mr.sge(half, length)], 2, **to),
            ])  # fmt: skip
            done: list[Any] = []
            while len(done) < 2:
                more = cq.wait(SECONDS)
                done += more
                if not more or not all(wc.ok for wc in more):
                    self.wrong.append(f"round {self.rounds}: {done}")
                    return
            self.image[offset : offset + length] = data
            if not np.array_equal(buf[half : half + length], data):
                self.wrong.append(f"round {self.rounds}: read back other bytes than written")
            self.rounds += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        assert not self.wrong

    async def some(self, count: int = 5) -> None:
        """Until that many more rounds are done."""
        goal = self.rounds + count
        async with asyncio.timeout(SECONDS):
            while self.rounds < goal:
                assert not self.wrong, self.wrong
                await asyncio.sleep(0.001)


def is_empty(device: Device) -> bool:
    return not any((device.qps, device.cqs, device.mrs, device.pds, device.gids))


class Room:
    """A place for functions on one host."""

    def __init__(self, nic: Nic) -> None:
        self.nic = nic
        self.device = nic.device
        self.arrivals: list[Arrival] = []
        self.started: list[Arrival] = []
        self.dropped: list[Arrival] = []
        self.completed: list[Arrival] = []
        self.taken = False

    @property
    def mac(self) -> bytes:
        return self.nic.port.mac

    def make(self, name: str) -> Device:
        assert not self.taken
        self.taken = True
        return self.device

    def unmake(self, device: Device) -> None:
        self.taken = False

    def announce(self, device: Device) -> None:
        ring = make_ring(1)
        for gid in device.gids.values():
            put_frame(ring, 0, Neighbours(gid.mac, []).announce(gid.ip))
            with self.nic.quiesced():
                self.nic.port.send_burst(ring, 1, 0)

    def allocate(self, piece: Piece) -> mmap.mmap:
        return mmap.mmap(-1, piece.length)

    def on_arrival(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)

    def on_start(self, arrival: Arrival) -> None:
        self.started.append(arrival)

    def on_complete(self, arrival: Arrival) -> None:
        self.completed.append(arrival)

    def on_drop(self, arrival: Arrival) -> None:
        self.dropped.append(arrival)


class Recorder(Owner):
    """An owner that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def pause(self) -> None:
        self.said.append("pause")

    def opaque(self) -> bytes:
        return b"from the owner"

    def resume(self) -> None:
        self.said.append("resume")

    def gone(self) -> None:
        self.said.append("gone")


class Scribbler(Recorder):
    """One that writes into its memory to the last moment."""

    def __init__(self, memory: Any, image: Any) -> None:
        super().__init__()
        self._memory, self._image = memory, image

    def pause(self) -> None:
        super().pause()
        self._memory[-TAIL:] = self._image[-TAIL:] = np.full(TAIL, len(self.said), np.uint8)


class Scene:
    """Hosts on a switch: the function on the first, its peer on the second, a place on the third; one to spare."""

    def __init__(self, size: int = SIZE) -> None:
        warm.prepare()  # or the first packets wait for the compiler, and their senders give up
        warm.moving()
        self.stack = contextlib.ExitStack()
        self.switch = self.stack.enter_context(MemorySwitch(4))
        self.nics = [
            self.stack.enter_context(Nic(Device(name), port))
            for name, port in zip(("sr0", "sr1", "sr2", "sr3"), self.switch.ports, strict=True)
        ]
        self.moving = End(self.nics[0].device, MOVING_IP, MOVING_MAC, size)
        self.peer = End(self.nics[1].device, PEER_IP, PEER_MAC)
        connect(self.moving, self.peer)
        self.room = Room(self.nics[2])
        self.traffic = Traffic(self.peer, self.moving.mr)

    @property
    def source(self) -> Device:
        return self.nics[0].device

    def check_moved(self) -> None:
        """It runs there and not here, and its memory is what the peer has written."""
        self.traffic.stop()
        (arrival,) = self.room.started
        (memory,) = arrival.memory.values()
        assert np.array_equal(memory, self.traffic.image)
        assert is_empty(self.source)

    def check_stayed(self) -> None:
        """It runs here, and nothing of it is there."""
        self.traffic.stop()
        assert not self.room.started
        assert is_empty(self.room.device)
        assert np.array_equal(self.moving.buf, self.traffic.image)

    def close(self) -> None:
        self.stack.close()


@contextlib.contextmanager
def scene(size: int = SIZE) -> Iterator[Scene]:
    made = Scene(size)
    try:
        yield made
    finally:
        made.traffic._stop.set()
        made.close()


@contextlib.asynccontextmanager
async def destination(made: Scene, path: Path, **options: Any) -> AsyncIterator[Arrivals]:
    arrivals = Arrivals(made.room, **options)
    async with listen_unix(arrivals, path):
        yield arrivals
    arrivals.close()


def scribbler(made: Scene) -> Scribbler:
    return Scribbler(made.moving.buf, made.traffic.image)


def departure(made: Scene, path: Path, **options: Any) -> Departure:
    return Departure(made.source, dial_unix(path), **options)


class Proxy:
    """Between source and destination: passes messages on, counted over both ways, and does something after one.

    After so many messages of all connections together, or the first of a name, `then` is called; "cut" breaks the
    connection.
    """

    def __init__(self, there: Path, after: int | str, then: Callable[[], None] | str) -> None:
        self._there, self._after, self._then = there, after, then
        self.count = 0
        self.names: list[str] = []
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._enter, str(path))
        try:
            yield
        finally:
            server.close()
            self.cut()

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(str(self._there))
        except OSError:
            writer.close()
            return
        mine = [writer, back_writer]
        self._writers += mine
        ways = [self._carry(reader, back_writer), self._carry(back_reader, writer)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for one in mine:
            one.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(stream.HEAD.size)
                header, body, crc = stream.lengths(head)
                data = await reader.readexactly(header + body)
                writer.write(head + data)
                await writer.drain()
                self.count += 1
                self.names.append(type(stream.parse(data[:header], crc, body)).__name__)
                if self._after == (self.count if isinstance(self._after, int) else self.names[-1]):
                    self._after = -1
                    if callable(self._then):
                        self._then()
                    else:
                        self.cut()
                        return

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()
