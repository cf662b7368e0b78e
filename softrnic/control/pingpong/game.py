"""The game: a message there, a message back, on one queue pair or several.

Decides what ibv_*_pingpong decide: attributes of the queue pairs, what is posted when, when it is over. The client's
message is random but for the first byte of each page, which is 0: that is what a server with -c looks for. The server
sends back what it got, so that the client can compare all of it.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from typing import Self

import numpy as np

from softrnic.control.pingpong import exchange
from softrnic.control.pingpong.exchange import NOWHERE, SRQ_DESTINATIONS, Destination
from softrnic.errors import SoftRnicError
from softrnic.spec import PSN_MASK, WC_STATUS_TEXT, Access, Mtu, QpState, QpType, WcStatus, WrOpcode
from softrnic.verbs import Ah, AhAttr, Device, Qp, QpCap, RecvWr, SendWr, Wc
from softrnic.verbs.address import gid_bytes
from softrnic.verbs.pd import with_mac

PAGE_BYTES = 4096
GRH_BYTES = 40
UD_QKEY = 0x11111111
MAX_SRQ_QPS = SRQ_DESTINATIONS - 1

_RECV, _SEND = 1, 2  # wr_id, and bits of what a queue pair still waits for


class Kind(Enum):
    """Which of the programs."""

    RC = "rc"
    UC = "uc"
    UD = "ud"
    SRQ = "srq"

    @property
    def qp_type(self) -> QpType:
        """Of its queue pairs."""
        return {Kind.UC: QpType.UC, Kind.UD: QpType.UD}.get(self, QpType.RC)


class PingpongError(SoftRnicError):
    """The game cannot begin, or was not finished."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the programs take as flags. Both sides must agree on `iters`, and on `size` within the peer's buffer."""

    kind: Kind = Kind.RC
    size: int = 4096
    iters: int = 1000
    mtu: Mtu = Mtu.MTU_1024
    gid_index: int = 0
    rx_depth: int = 500
    num_qp: int = 16
    """Of ibv_srq_pingpong; the others have one."""
    events: bool = False
    """Sleep until a completion comes, instead of looking for it."""
    check: bool = False
    stall_seconds: float = 10.0
    """How long nothing may happen: UC and UD do not repeat what is lost."""

    def __post_init__(self) -> None:
        limits = {"size": (0, 1 << 30), "iters": (1, 1 << 31), "rx_depth": (1, 1 << 15), "num_qp": (1, MAX_SRQ_QPS)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise PingpongError(f"{name} must be {low} to {high}, not {getattr(self, name)}")
        if self.kind is Kind.SRQ and self.num_qp > self.rx_depth:
            raise PingpongError(f"{self.rx_depth} receives are not one for each of {self.num_qp} queue pairs")


@dataclass(frozen=True)
class Result:
    """How it went."""

    size: int
    iters: int
    seconds: float
    invalid_pages: list[int] = field(default_factory=list)
    """With `check`: pages of a message that were not as sent."""

    @property
    def bytes(self) -> int:
        """Both ways together."""
        return self.size * self.iters * 2

    def __str__(self) -> str:
        rate = self.bytes * 8 / self.seconds / 1e6
        lines = [
            f"{self.bytes} bytes in {self.seconds:.2f} seconds = {rate:.2f} Mbit/sec",
            f"{self.iters} iters in {self.seconds:.2f} seconds = {self.seconds / self.iters * 1e6:.2f} usec/iter",
        ]
        return "\n".join(lines + [f"invalid data in page {page}" for page in self.invalid_pages])


def _say_nothing(_: str) -> None:
    """Nobody reads along."""


class Pingpong:
    """One side. `say` is told both addresses, as the programs print them."""

    def __init__(self, device: Device, options: Options, say: Callable[[str], None] = _say_nothing) -> None:
        self.device = device
        self.options = options
        self._say = say
        self._headroom = GRH_BYTES if options.kind is Kind.UD else 0
        self._check_size()
        self._own_gid = IPv6Address(gid_bytes(device.query_gid(options.gid_index).ip))
        self._pd = device.alloc_pd()
        count = options.num_qp if options.kind is Kind.SRQ else 1
        self._cq = device.create_cq(options.rx_depth + count)
        boxes = [np.full(max(1, self._headroom + options.size), 0x7B, np.uint8) for _ in range(2)]
        self._regions = [self._pd.reg_mr(box, Access.LOCAL_WRITE) for box in boxes]
        self._outbox, self._inbox = (box[self._headroom : self._headroom + options.size] for box in boxes)
        self._fill()
        self._srq = self._pd.create_srq(options.rx_depth) if options.kind is Kind.SRQ else None
        self._qps = [self._create_qp() for _ in range(count)]
        self._psns = [secrets.randbits(24) & PSN_MASK for _ in self._qps]
        self._paths: dict[IPv6Address, AhAttr] = {}
        self._ah: Ah | None = None
        self._dqpn = 0
        self._posted = 0
        self._post_receives()

    def _check_size(self) -> None:
        top = self.device.port.active_mtu
        if self.options.kind is Kind.UD and self.options.size > top:
            raise PingpongError(f"a datagram of {self.options.size} bytes: the port carries {top}")

    def _fill(self) -> None:
        self._outbox[:] = np.random.default_rng(exchange.PORT).integers(0, 256, self.options.size, np.uint8)
        self._outbox[::PAGE_BYTES] = 0

    def _create_qp(self) -> Qp:
        kind, options = self.options.kind.qp_type, self.options
        cap = QpCap(max_send_wr=1, max_recv_wr=options.rx_depth)
        qp = self._pd.create_qp(kind, self._cq, self._cq, cap, srq=self._srq)
        rights = {"qkey": UD_QKEY} if kind == QpType.UD else {"access_flags": Access.LOCAL_WRITE}
        qp.modify(QpState.INIT, pkey_index=0, port=1, **rights)
        return qp

    # --- meeting --------------------------------------------------------------------------------------------

    def call(self, sock: socket.socket) -> Result:
        """The client's part, on a connection to the server."""
        own = self._introduce()
        peers = exchange.ask(sock, own)
        self._connect(peers)
        return self._play(first=True)

    def serve(self, listener: socket.socket) -> Result:
        """The server's part, for the next client of a listening socket."""
        own = self._introduce()
        with listener.accept()[0] as sock:
            exchange.answer(sock, own, self._connect)
        return self._play(first=False)

    def _introduce(self) -> list[Destination]:
        own = [Destination(qp.qpn, psn, self._own_gid) for qp, psn in zip(self._qps, self._psns, strict=True)]
        for destination in own:
            self._say(f"  local address:  {destination}")
        missing = SRQ_DESTINATIONS - len(own) if self._srq else 0
        return own + [NOWHERE] * missing

    def _connect(self, peers: Sequence[Destination]) -> None:
        used = list(zip(self._qps, self._psns, peers, strict=False))
        for gid in {peer.gid for _, _, peer in used}:
            if gid == NOWHERE.gid:
                raise PingpongError("the peer has told no GID: it needs option -g")
            self._paths[gid] = with_mac(self.device, AhAttr(gid, self.options.gid_index))
        for qp, psn, peer in used:
            self._say(f"  remote address: {peer}")
            self._connect_qp(qp, psn, peer)

    def _connect_qp(self, qp: Qp, psn: int, peer: Destination) -> None:
        path = self._paths[peer.gid]
        if qp.type == QpType.UD:
            qp.modify(QpState.RTR)
            qp.modify(QpState.RTS, sq_psn=psn)
            self._ah, self._dqpn = self._pd.create_ah(path), peer.qpn
            return
        responder = {"max_dest_rd_atomic": 1, "min_rnr_timer": 12} if qp.type == QpType.RC else {}
        requester = {"timeout": 14, "retry_cnt": 7, "rnr_retry": 7, "max_rd_atomic": 1} if responder else {}
        qp.modify(
            QpState.RTR, ah=path, path_mtu=self.options.mtu, dqpn=peer.qpn, rq_psn=peer.psn, **responder
        )  # fmt: skip
        qp.modify(QpState.RTS, sq_psn=psn, **requester)

    # --- playing --------------------------------------------------------------------------------------------

    def _play(self, *, first: bool) -> Result:
        iters = self.options.iters
        sent = received = 0
        invalid: set[int] = set()
        index = {qp.qpn: i for i, qp in enumerate(self._qps)}
        waits_for = [_RECV] * len(self._qps)
        start = time.monotonic()
        if first:
            for i in range(len(self._qps)):
                self._send(i, first)
                waits_for[i] |= _SEND
        for wc in self._completions():
            i = index[wc.qpn]
            if wc.wr_id == _SEND:
                sent += 1
            else:
                received += 1
                invalid.update(self._damage(wc) if first and self.options.check else ())
                self._posted -= 1
                self._post_receives()
            waits_for[i] &= ~wc.wr_id
            if sent < iters and not waits_for[i]:
                self._send(i, first)
                waits_for[i] = _RECV | _SEND
            if received >= iters and sent >= iters:
                break
        seconds = time.monotonic() - start
        if self.options.check and not first:
            invalid.update(np.flatnonzero(self._inbox[::PAGE_BYTES]).tolist())
        return Result(self.options.size, iters, seconds, sorted(invalid))

    def _completions(self) -> Iterator[Wc]:
        while True:
            for wc in self._next():
                if wc.status != WcStatus.SUCCESS:
                    text = WC_STATUS_TEXT.get(wc.status, wc.status.name)
                    raise PingpongError(f"Failed status {text} ({wc.status.value}) for wr_id {wc.wr_id}")
                yield wc

    def _next(self) -> list[Wc]:
        limit = self.options.stall_seconds
        if self.options.events:
            done = self._cq.wait(limit)
        else:
            deadline = time.monotonic() + limit
            while not (done := self._cq.poll()) and time.monotonic() < deadline:
                time.sleep(0)  # the pump may need the interpreter
        if not done:
            raise PingpongError(f"nothing has happened for {limit:g} s")
        return done

    def _damage(self, wc: Wc) -> list[int]:
        """Pages of a message that came back other than it was sent."""
        length = wc.byte_len - self._headroom
        if length != self.options.size:
            return [min(length, self.options.size) // PAGE_BYTES]
        wrong = np.flatnonzero(self._inbox != self._outbox)
        pages: list[int] = np.unique(wrong // PAGE_BYTES).tolist()
        return pages

    def _send(self, i: int, first: bool) -> None:
        """The client sends its message, the server what it has received."""
        mr = self._regions[0 if first else 1]
        sge = mr.sge(self._headroom, self.options.size)
        self._qps[i].post_send(SendWr(WrOpcode.SEND, [sge], wr_id=_SEND, ah=self._ah, dqpn=self._dqpn, qkey=UD_QKEY))

    def _post_receives(self) -> None:
        """Fill the queue up when few are left."""
        if self._posted > len(self._qps):
            return
        queue = self._srq or self._qps[0]
        missing = self.options.rx_depth - self._posted
        queue.post_recv([RecvWr([self._regions[1].sge()], wr_id=_RECV)] * missing)
        self._posted += missing

    # --- end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give everything back."""
        self._pd.close()
        self._cq.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
