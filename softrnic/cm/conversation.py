"""What the manager remembers: listeners, connections, resolutions, and the limits on them.

Records with names for what follows from them. Read them freely; only manager.py and directory.py write.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

from softrnic.cm.machine import State
from softrnic.cm.mad import Attr, Drop
from softrnic.cm.messages import Drep, Rej, Rep, Req, SidrRep, SidrReq
from softrnic.spec import Mtu

# Timeouts are 4.096 us * 2^n. The floor keeps a peer from asking for a storm of repetitions, the ceilings
# from having us wait for hours: 16.8 ms, 34 s, and for a MRA 137 s (Linux asks for 68 s).
_MIN_TIMEOUT, _MAX_TIMEOUT, MAX_SERVICE_TIMEOUT = 12, 23, 25


def timeout_ns(exponent: int, ceiling: int = _MAX_TIMEOUT) -> int:
    """A CM timeout in ns, within reason."""
    return 4096 << min(max(exponent, _MIN_TIMEOUT), ceiling)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What does not depend on the connection."""

    response_timeout: int = 20
    """4.3 s, as rdma_cm: what a peer has to answer in."""
    max_cm_retries: int = 15
    packet_life_time: int = 14
    """67 ms; twice that is added to every answer's time."""
    mra_service_timeout: int = 24
    """68 s: what we ask for when a peer repeats itself before our consumer has answered."""
    consumer_timeout_ns: int = 60_000_000_000
    """How long our consumer may take for its answer."""
    max_path_mtu: int = Mtu.MTU_4096
    max_conversations: int = 16384
    max_lingering: int = 4096
    """Conversations that are over and only remembered; beyond, the oldest is forgotten early."""
    max_queued: int = 4096
    """MADs not yet fetched by `transmit`; beyond, the oldest is lost, as a MAD may be."""


class Address(NamedTuple):
    """The two ends of a MAD's way, as we see it. The QPs are QP1."""

    local_gid: bytes
    gid: bytes


class Role(Enum):
    """Who asked for the connection."""

    ACTIVE  = 0
    PASSIVE = 1


class Listener:
    """A service id, on one local GID or on all."""

    def __init__(
        self, service_id: int, gid: bytes | None, backlog: int, transports: frozenset[int], datagram: bool
    ) -> None:
        self.service_id = service_id
        self.gid = gid
        self.backlog = backlog
        self.transports = transports
        self.datagram = datagram
        """Serves service id resolution instead of connections."""
        self.state = State.LISTEN
        self.pending = 0
        """Requests that were not answered, or whose answer was not yet confirmed."""


class Conversation:
    """What connections and resolutions have in common: a peer, a state, a timer, and what was said last."""

    def __init__(self, peer: Address, tid: int, config: Config) -> None:
        self.peer = peer
        self.tid = tid
        self.state = State.IDLE
        self.listener: Listener | None = None
        self.sent = b""
        """The last datagram the peer must not miss: said again on a retry, and to a duplicate."""
        self.max_retries = config.max_cm_retries
        self.retries = 0
        self.response_ns = timeout_ns(config.response_timeout) + 2 * timeout_ns(config.packet_life_time)
        self.service_ns = 0
        self.timewait_ns = 0

    @property
    def linger_ns(self) -> int:
        """Long enough to answer a few repetitions."""
        return 4 * self.response_ns


class Connection(Conversation):
    """One connection, from either side."""

    def __init__(self, role: Role, req: Req, peer: Address, tid: int, config: Config) -> None:
        super().__init__(peer, tid, config)
        self.role = role
        self.req = req
        self.rep: Rep | None = None
        self.rej: Rej | None = None
        self.drep: Drep | None = None
        self.local_comm_id = 0
        self.remote_comm_id = 0
        self.timewait_ns = timeout_ns(req.primary.local_ack_timeout)

    def qpn_in(self, rep: Rep) -> int:
        """The QP a REP of this connection offers. A14: an XRC target is named where the EE context was."""
        return rep.local_eecn if self.req.is_xrc else rep.local_qpn

    @property
    def _replier_qpn(self) -> int:
        return self.qpn_in(self.rep) if self.rep else 0

    @property
    def local_qpn(self) -> int:
        """The QP of this side; 0 while it is not known."""
        return self.req.local_qpn if self.role is Role.ACTIVE else self._replier_qpn

    @property
    def remote_qpn(self) -> int:
        """The QP of the peer; 0 while it is not known."""
        return self.req.local_qpn if self.role is Role.PASSIVE else self._replier_qpn

    def __repr__(self) -> str:
        return f"<{self.role.name.lower()} connection 0x{self.local_comm_id:08x} {self.state.name}>"


class Resolution(Conversation):
    """One question which QP serves a service id, from either side."""

    def __init__(self, sidr_req: SidrReq, peer: Address, tid: int, config: Config) -> None:
        super().__init__(peer, tid, config)
        self.sidr_req = sidr_req
        self.sidr_rep: SidrRep | None = None


class Counters:
    """Named as in sysfs (cm_tx_msgs, cm_tx_retries, cm_rx_msgs, cm_rx_duplicates), by message; and drops."""

    def __init__(self) -> None:
        self.tx_msgs = dict.fromkeys(Attr, 0)
        self.tx_retries = dict.fromkeys(Attr, 0)
        self.rx_msgs = dict.fromkeys(Attr, 0)
        self.rx_duplicates = dict.fromkeys(Attr, 0)
        self.drops = dict.fromkeys(Drop, 0)
