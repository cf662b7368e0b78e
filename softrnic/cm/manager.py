"""The communication manager: MADs in, MADs and events out (IBTA 12.9, 12.10, 12.11).

Decides whether a message is acceptable and to which conversation it speaks, what is sent and how long is
waited. Which state follows is decided by the table in machine.py. Sans-IO: the caller brings every datagram,
its path and the time (integer nanoseconds), sends what `transmit` yields, reads `events` and calls `on_timer`
at `next_deadline`. Must never know a QP object, a socket or the RDMA CM's ports (service.py).

A peer is known by its GID. Its comm ids and QPNs are looked up together with that GID, and a message that
names a conversation but comes from elsewhere is dropped: what a peer says can only harm its own
conversations.
DEVIATION(spec 12.9.8.3.1): stale connections are recognised by GID and QPN, not by CA GUID and QPN, because
the GUID is only a claim.

What a hostile peer can make us remember is bounded: by a listener's backlog for requests that are not
settled, by `Config.max_conversations` in all, by `Config.max_lingering` for what is over. Timeouts a peer
chooses are clamped.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from softrnic.cm import compose, events, mad
from softrnic.cm.conversation import (
    MAX_SERVICE_TIMEOUT,
    Address,
    Config,
    Connection,
    Conversation,
    Counters,
    Listener,
    Resolution,
    Role,
    timeout_ns,
)
from softrnic.cm.deadlines import Deadlines
from softrnic.cm.directory import Directory
from softrnic.cm.events import Event
from softrnic.cm.machine import TIMERS, Input, Notice, Reply, State, Timer, step
from softrnic.cm.mad import Attr, Drop, MadError
from softrnic.cm.messages import (
    Apr,
    Drep,
    Dreq,
    Lap,
    Message,
    Mra,
    Reason,
    Rej,
    Rep,
    Req,
    Rtu,
    SidrRep,
    SidrReq,
    SidrStatus,
    Subject,
    Transport,
    decode,
    encode,
)
from softrnic.errors import VerbsError
from softrnic.spec import Mtu


class ConnectionManager:
    """All conversations of one device (one CA GUID)."""

    def __init__(self, ca_guid: int, random_bits: Callable[[int], int], config: Config | None = None) -> None:
        """`random_bits(n)` gives n random bits: comm ids must not be guessed from outside."""
        self.ca_guid = ca_guid
        self.config = config or Config()
        self.counters = Counters()
        self.directory = Directory(random_bits, self.config)
        self._tid = random_bits(64)
        self._out: deque[tuple[Address, bytes]] = deque(maxlen=self.config.max_queued)
        self._events: deque[Event] = deque()
        self._deadlines: Deadlines[Conversation] = Deadlines()

    # --- the consumer: listening ----------------------------------------------------------------------------

    def listen(
        self,
        service_id: int,
        *,
        gid: bytes | None = None,
        backlog: int = 128,
        transports: frozenset[int] = frozenset({Transport.RC, Transport.UC}),
        datagram: bool = False,
    ) -> Listener:
        """Take requests for a service id, sent to `gid` or to any GID of ours; EADDRINUSE if it is taken."""
        listener = Listener(service_id, gid, backlog, transports, datagram)
        self.directory.add_listener(listener)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Stop. Conversations that came of the listener go on."""
        self.directory.remove_listener(listener)
        listener.state = State.CLOSED

    # --- the consumer: connections --------------------------------------------------------------------------

    def connect(self, req: Req, peer: Address, now: int) -> Connection:
        """Send a REQ. Ids, GIDs and CM timeouts are filled in here, the rest is the consumer's."""
        self._make_room()
        config = self.config
        req = msgspec.structs.replace(
            req,
            local_comm_id=self.directory.new_id(self.directory.connections),
            local_ca_guid=self.ca_guid,
            remote_cm_response_timeout=config.response_timeout,
            local_cm_response_timeout=config.response_timeout,
            max_cm_retries=config.max_cm_retries,
            primary=msgspec.structs.replace(req.primary, local_gid=peer.local_gid, remote_gid=peer.gid),
        )
        connection = Connection(Role.ACTIVE, req, peer, self._next_tid(), config)
        connection.local_comm_id = req.local_comm_id
        self._call(connection, Input.CONNECT, now)
        return connection

    def accept(self, connection: Connection, rep: Rep, now: int) -> None:
        """Send a REP; the QP must be ready to receive."""
        self._require(connection, Input.ACCEPT)
        connection.rep = compose.rep(connection, rep, self.ca_guid)
        self._call(connection, Input.ACCEPT, now)

    def confirm(self, connection: Connection, now: int, private_data: bytes = b"") -> None:
        """Send the RTU; the QP must be ready to send."""
        self._call(connection, Input.CONFIRM, now, private_data)

    def reject(
        self,
        connection: Connection,
        now: int,
        reason: int = Reason.CONSUMER_DEFINED,
        information: bytes = b"",
        private_data: bytes = b"",
    ) -> None:
        """Refuse the peer's REQ or REP."""
        self._require(connection, Input.REJECT)
        connection.rej = compose.rej(connection, reason, information, private_data)
        self._call(connection, Input.REJECT, now)

    def delay(self, connection: Connection, now: int, private_data: bytes = b"") -> None:
        """Send a MRA: the answer to the peer's REQ or REP will take longer."""
        self._call(connection, Input.DELAY, now, private_data)

    def establish(self, connection: Connection, now: int) -> None:
        """A packet came in on the QP: the peer is ready, whatever became of its RTU."""
        self._apply(connection, Input.ESTABLISH, now)

    def disconnect(self, connection: Connection, now: int, private_data: bytes = b"") -> None:
        """End it, in whatever state: take a REQ back, reject, send a DREQ or answer one."""
        self._call(connection, Input.DISCONNECT, now, private_data)

    # --- the consumer: datagrams ----------------------------------------------------------------------------

    def resolve(self, sidr_req: SidrReq, peer: Address, now: int) -> Resolution:
        """Ask the peer which UD QP serves a service id."""
        self._make_room()
        request_id = self.directory.new_id(self.directory.resolving)
        request = msgspec.structs.replace(sidr_req, request_id=request_id)
        resolution = Resolution(request, peer, self._next_tid(), self.config)
        self._call(resolution, Input.RESOLVE, now)
        return resolution

    def answer(self, resolution: Resolution, sidr_rep: SidrRep, now: int) -> None:
        """Answer a peer's question."""
        self._require(resolution, Input.ANSWER)
        resolution.sidr_rep = compose.sidr_rep(resolution.sidr_req, sidr_rep)
        self._call(resolution, Input.ANSWER, now)

    def cancel(self, resolution: Resolution, now: int) -> None:
        """Lose interest in a question."""
        self._call(resolution, Input.DISCONNECT, now)

    # --- input, output, time --------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Address, now: int) -> Drop | None:
        """A datagram came in on QP1. Returns why it changed nothing, if it did not."""
        try:
            packet = mad.parse(datagram)
        except MadError as error:
            drop: Drop | None = error.drop
        else:
            self.counters.rx_msgs[packet.attr] += 1
            drop = _HANDLERS[packet.attr](self, decode(packet), packet.tid, source, now)
            if drop is Drop.DUPLICATE:
                self.counters.rx_duplicates[packet.attr] += 1
        if drop is not None:
            self.counters.drops[drop] += 1
        return drop

    def transmit(self) -> Iterator[tuple[Address, bytes]]:
        """Datagrams to send from QP1 to QP1, and the way they go."""
        while self._out:
            yield self._out.popleft()

    def events(self) -> Iterator[Event]:
        """What the consumer has not been told yet."""
        while self._events:
            yield self._events.popleft()

    def next_deadline(self) -> int | None:
        """When `on_timer` wants to be called."""
        return self._deadlines.next()

    def on_timer(self, now: int) -> None:
        """Repeat what was not answered, give up what was repeated enough, forget what is over."""
        for conversation in self._deadlines.expired(now):
            repeats = TIMERS[conversation.state] in (Timer.RESPONSE, Timer.SERVICE)
            event = Input.RETRY if repeats and conversation.retries else Input.EXPIRE
            self._apply(conversation, event, now)

    # --- messages of the peer -------------------------------------------------------------------------------

    def _recv_req(self, req: Req, tid: int, source: Address, now: int) -> Drop | None:
        known = self.directory.request(source, req.local_comm_id)
        if known is not None:
            return self._hear(known, Input.RECV_REQ, req, tid, now)
        listener = self.directory.listener(req.service_id, source.local_gid)
        if listener is None or listener.datagram:
            return self._refuse(req, tid, source, Reason.INVALID_SERVICE_ID)
        if req.transport not in listener.transports:
            return self._refuse(req, tid, source, Reason.INVALID_TRANSPORT_TYPE)
        # The QP will talk to the GID in the path, so that must be the GID that asks.
        if (req.primary.remote_gid, req.primary.local_gid) != source:
            return self._refuse(req, tid, source, Reason.INVALID_GID, source.local_gid)
        if not Mtu.MTU_256 <= req.path_mtu <= self.config.max_path_mtu:
            return self._refuse(req, tid, source, Reason.INVALID_MTU, bytes((self.config.max_path_mtu,)))
        if self._end_stale(source, req.local_qpn, now):
            return self._refuse(req, tid, source, Reason.STALE_CONN)
        if not self.directory.has_room(listener):
            return Drop.BUSY  # as Linux, no REJ: the peer repeats its REQ, and there may be room then
        connection = Connection(Role.PASSIVE, req, source, tid, self.config)
        connection.local_comm_id = self.directory.new_id(self.directory.connections)
        connection.remote_comm_id = req.local_comm_id
        connection.listener = listener
        connection.max_retries = req.max_cm_retries
        connection.response_ns = timeout_ns(req.local_cm_response_timeout) + self._round_trip_ns
        return self._hear(connection, Input.RECV_REQ, req, tid, now)

    def _recv_rep(self, rep: Rep, tid: int, source: Address, now: int) -> Drop | None:
        connection = self.directory.connections.get(rep.remote_comm_id)
        if connection is None or connection.remote_comm_id not in (0, rep.local_comm_id):
            self._send(source, compose.rej_of(rep, Reason.INVALID_COMM_ID), tid)
            return Drop.UNKNOWN_ID
        if drop := _misdirected(connection, source, Role.ACTIVE):
            return drop
        if connection.state in (State.REQ_SENT, State.MRA_REQ_RCVD):
            if self._end_stale(source, connection.qpn_in(rep), now):
                return self._refuse(rep, tid, source, Reason.STALE_CONN)
            connection.rep = rep
            connection.remote_comm_id = rep.local_comm_id
        return self._hear(connection, Input.RECV_REP, rep, tid, now)

    def _recv_mra(self, mra: Mra, tid: int, source: Address, now: int) -> Drop | None:
        about_req = mra.message_mraed == Subject.REQ
        if about_req:  # comes before the REP, which alone tells us the peer's comm id
            connection = self.directory.connections.get(mra.remote_comm_id)
        else:
            connection = self.directory.connection(mra.remote_comm_id, mra.local_comm_id)
        if connection is None:
            return Drop.UNKNOWN_ID
        if drop := _misdirected(connection, source, Role.ACTIVE if about_req else Role.PASSIVE):
            return drop
        connection.service_ns = timeout_ns(mra.service_timeout, MAX_SERVICE_TIMEOUT) + self._round_trip_ns
        event = Input.RECV_MRA_REQ if about_req else Input.RECV_MRA_REP
        return self._hear(connection, event, mra, tid, now)

    def _recv_rej(self, rej: Rej, tid: int, source: Address, now: int) -> Drop | None:
        connection = self.directory.connections.get(rej.remote_comm_id)
        if connection is None and rej.remote_comm_id == 0 and rej.reason == Reason.TIMEOUT:
            # A REQ taken back before it was answered: the peer knows no comm id but its own.
            connection = self.directory.request(source, rej.local_comm_id)
        if connection is None or connection.remote_comm_id not in (0, rej.local_comm_id):
            return Drop.UNKNOWN_ID
        if drop := _misdirected(connection, source):
            return drop
        return self._hear(connection, Input.RECV_REJ, rej, tid, now)

    def _recv_dreq(self, dreq: Dreq, tid: int, source: Address, now: int) -> Drop | None:
        connection = self.directory.connection(dreq.remote_comm_id, dreq.local_comm_id)
        if connection is None:  # who has forgotten a connection helps the peer to forget it, too
            self._send(source, compose.drep_of(dreq), tid)
            return Drop.UNKNOWN_ID
        if drop := _misdirected(connection, source):
            return drop
        if dreq.remote_qpn != connection.local_qpn:
            return Drop.WRONG_QPN
        connection.tid = tid
        return self._hear(connection, Input.RECV_DREQ, dreq, tid, now)

    def _recv_known(self, message: Rtu | Drep | Lap, tid: int, source: Address, now: int) -> Drop | None:
        """A message that names the connection by both ids and needs no look at what it says."""
        event, role = _PLAIN[type(message)]
        connection = self.directory.connection(message.remote_comm_id, message.local_comm_id)
        if connection is None:
            return Drop.UNKNOWN_ID
        return _misdirected(connection, source, role) or self._hear(connection, event, message, tid, now)

    def _recv_apr(self, _apr: Apr, _tid: int, _source: Address, _now: int) -> Drop | None:
        return Drop.WRONG_STATE  # the answer to a LAP, and we send none

    def _recv_sidr_req(self, sidr_req: SidrReq, tid: int, source: Address, now: int) -> Drop | None:
        known = self.directory.sidr_request(source, sidr_req.request_id)
        if known is not None:
            return self._hear(known, Input.RECV_SIDR_REQ, sidr_req, tid, now)
        listener = self.directory.listener(sidr_req.service_id, source.local_gid)
        if listener is None or not listener.datagram:
            refusal = SidrRep(status=SidrStatus.UNSUPPORTED)
            self._send(source, compose.sidr_rep(sidr_req, refusal), tid)
            return Drop.REFUSED
        if not self.directory.has_room(listener):
            return Drop.BUSY
        resolution = Resolution(sidr_req, source, tid, self.config)
        resolution.listener = listener
        return self._hear(resolution, Input.RECV_SIDR_REQ, sidr_req, tid, now)

    def _recv_sidr_rep(self, sidr_rep: SidrRep, tid: int, source: Address, now: int) -> Drop | None:
        resolution = self.directory.resolving.get(sidr_rep.request_id)
        if resolution is None:
            return Drop.UNKNOWN_ID
        if drop := _misdirected(resolution, source):
            return drop
        resolution.sidr_rep = sidr_rep
        return self._hear(resolution, Input.RECV_SIDR_REP, sidr_rep, tid, now)

    def _refuse(
        self, message: Req | Rep, tid: int, source: Address, reason: Reason, information: bytes = b""
    ) -> Drop:
        self._send(source, compose.rej_of(message, reason, information), tid)
        return Drop.REFUSED

    def _end_stale(self, peer: Address, qpn: int, now: int) -> bool:
        """Is the QP offered one we believe connected? The peer has forgotten that: end it (12.9.8.3.1)."""
        stale = self.directory.remote_qp(peer, qpn)
        if stale is None:
            return False
        self._apply(stale, Input.DISCONNECT, now)
        if stale.state is State.REJ_SENT:  # was not established yet, and the consumer waits for that
            self._events.append(events.ConnectError(stale))
        return True

    # --- the table, performed -------------------------------------------------------------------------------

    def _require(self, conversation: Conversation, event: Input) -> None:
        if step(conversation.state, event) is None:
            raise VerbsError(errno.EINVAL, f"{event.name.lower()} in state {conversation.state.name}")

    def _call(self, conversation: Conversation, event: Input, now: int, private_data: bytes = b"") -> None:
        """The consumer wants something; EINVAL if it may not."""
        self._require(conversation, event)
        self._apply(conversation, event, now, private_data=private_data)

    def _hear(
        self, conversation: Conversation, event: Input, message: Message, tid: int, now: int
    ) -> Drop | None:
        """The peer said something; why not, if it may not, or had said so before."""
        before = conversation.state
        if step(before, event) is None:
            return Drop.WRONG_STATE
        self._apply(conversation, event, now, message, tid)
        repeated = conversation.state is before and event is not Input.RECV_LAP
        return Drop.DUPLICATE if repeated else None

    def _apply(
        self,
        conversation: Conversation,
        event: Input,
        now: int,
        message: Message | None = None,
        tid: int = 0,
        private_data: bytes = b"",
    ) -> None:
        """Follow an edge, if there is one. The reply is made first: if that raises, nothing has changed."""
        before = conversation.state
        edge = step(before, event)
        if edge is None:
            return
        datagram = self._reply(conversation, edge.reply, event, tid, private_data)
        conversation.state = edge.state
        if edge.state is not before or event is Input.RETRY:
            self._arm(conversation, event, now)
        if edge.state is not before:
            self.directory.moved(conversation, before)
        if datagram:
            self._queue(conversation, edge.reply, datagram)
        if edge.notice is not Notice.NONE:
            self._events.append(_EVENTS[edge.notice](conversation, message))
        if (oldest := self.directory.crowded_out()) is not None:
            self._apply(oldest, Input.EXPIRE, now)

    def _arm(self, conversation: Conversation, event: Input, now: int) -> None:
        """Start the timer of the state."""
        timer = TIMERS[conversation.state]
        if event is Input.RETRY:
            conversation.retries -= 1
        elif timer is Timer.RESPONSE:
            conversation.retries = conversation.max_retries
        match timer:
            case Timer.NONE:
                self._deadlines.cancel(conversation)
                return
            case Timer.RESPONSE:
                patience = conversation.response_ns
            case Timer.SERVICE:
                patience = conversation.service_ns
            case Timer.CONSUMER:
                patience = self.config.consumer_timeout_ns
            case Timer.TIMEWAIT:
                patience = conversation.timewait_ns
            case Timer.LINGER:
                patience = conversation.linger_ns
        self._deadlines.set(conversation, now + patience)

    # --- messages to the peer -------------------------------------------------------------------------------

    def _reply(
        self, conversation: Conversation, reply: Reply, event: Input, tid: int, private_data: bytes
    ) -> bytes:
        """The datagram an edge sends, or nothing. The conversation is still in the state the edge leaves."""
        if reply is Reply.NONE:
            return b""
        if reply is Reply.REPEAT:
            return conversation.sent
        if reply is Reply.DREQ:
            tid = self._next_tid()
        elif reply not in (Reply.APR, Reply.REJ_STALE):  # those answer what was just heard
            tid = conversation.tid
        if isinstance(conversation, Connection):
            message = self._message(conversation, reply, event, private_data)
        elif isinstance(conversation, Resolution) and reply is Reply.SIDR_REQ:
            message = conversation.sidr_req
        elif isinstance(conversation, Resolution):
            message = conversation.sidr_rep
        return mad.emit(encode(message, tid)) if message else b""

    def _message(
        self, connection: Connection, reply: Reply, event: Input, private_data: bytes
    ) -> Message | None:
        service_timeout = self.config.mra_service_timeout
        match reply:
            case Reply.REQ:
                return connection.req
            case Reply.REP:
                return connection.rep
            case Reply.RTU:
                return compose.rtu(connection, private_data)
            case Reply.MRA_REQ:
                return compose.mra(connection, Subject.REQ, service_timeout, private_data)
            case Reply.MRA_REP:
                return compose.mra(connection, Subject.REP, service_timeout, private_data)
            case Reply.REJ:
                return connection.rej or compose.rej(connection, Reason.CONSUMER_DEFINED)
            case Reply.REJ_TIMEOUT:
                return compose.rej_timeout(connection, self.ca_guid)
            case Reply.REJ_STALE:
                subject = Subject.REQ if event is Input.RECV_REQ else Subject.REP
                return compose.rej(connection, Reason.STALE_CONN, subject=subject)
            case Reply.DREQ:
                return compose.dreq(connection, private_data)
            case Reply.DREP:
                connection.drep = connection.drep or compose.drep(connection, private_data)
                return connection.drep
            case Reply.APR:
                return compose.apr(connection)
        return None

    def _queue(self, conversation: Conversation, reply: Reply, datagram: bytes) -> None:
        attr = mad.parse(datagram).attr
        self.counters.tx_msgs[attr] += 1
        if reply is Reply.REPEAT:
            self.counters.tx_retries[attr] += 1
        elif reply not in (Reply.APR, Reply.DREP, Reply.REJ_STALE):
            conversation.sent = datagram
        self._out.append((conversation.peer, datagram))

    def _send(self, peer: Address, message: Message, tid: int) -> None:
        """Send what belongs to no conversation."""
        packet = encode(message, tid)
        self.counters.tx_msgs[packet.attr] += 1
        self._out.append((peer, mad.emit(packet)))

    # --- small things ---------------------------------------------------------------------------------------

    @property
    def _round_trip_ns(self) -> int:
        return 2 * timeout_ns(self.config.packet_life_time)

    def _make_room(self) -> None:
        if self.directory.is_full:
            raise VerbsError(errno.ENOMEM, f"{len(self.directory)} conversations are under way")

    def _next_tid(self) -> int:
        self._tid = (self._tid + 1) & 0xFFFFFFFFFFFFFFFF
        return self._tid


def _misdirected(conversation: Conversation, source: Address, role: Role | None = None) -> Drop | None:
    """Why this peer cannot have meant this conversation."""
    if conversation.peer != source:
        return Drop.WRONG_PEER
    if role is not None and isinstance(conversation, Connection) and conversation.role is not role:
        return Drop.WRONG_ROLE
    return None


_PLAIN: dict[type[Message], tuple[Input, Role | None]] = {
    Rtu:  (Input.RECV_RTU, Role.PASSIVE),
    Drep: (Input.RECV_DREP, None),
    Lap:  (Input.RECV_LAP, None),
}  # fmt: skip

_HANDLERS: dict[Attr, Callable[[ConnectionManager, Any, int, Address, int], Drop | None]] = {
    Attr.REQ:      ConnectionManager._recv_req,
    Attr.MRA:      ConnectionManager._recv_mra,
    Attr.REJ:      ConnectionManager._recv_rej,
    Attr.REP:      ConnectionManager._recv_rep,
    Attr.RTU:      ConnectionManager._recv_known,
    Attr.DREQ:     ConnectionManager._recv_dreq,
    Attr.DREP:     ConnectionManager._recv_known,
    Attr.SIDR_REQ: ConnectionManager._recv_sidr_req,
    Attr.SIDR_REP: ConnectionManager._recv_sidr_rep,
    Attr.LAP:      ConnectionManager._recv_known,
    Attr.APR:      ConnectionManager._recv_apr,
}  # fmt: skip

_EVENTS: dict[Notice, Callable[[Any, Any], Event]] = {
    Notice.CONNECT_REQUEST:  lambda c, m: events.ConnectRequest(c, c.listener, m),
    Notice.CONNECT_RESPONSE: events.ConnectResponse,
    Notice.ESTABLISHED:      lambda c, m: events.Established(c, m.private_data if m else b""),
    Notice.REJECTED:         events.Rejected,
    Notice.UNREACHABLE:      lambda c, _: events.Unreachable(c),
    Notice.CONNECT_ERROR:    lambda c, _: events.ConnectError(c),
    Notice.DISCONNECTED:     lambda c, m: events.Disconnected(c, m.private_data if m else b""),
    Notice.TIMEWAIT_EXIT:    lambda c, _: events.TimewaitExit(c),
    Notice.RESOLVE_REQUEST:  lambda c, m: events.ResolveRequest(c, c.listener, m),
    Notice.RESOLVE_RESPONSE: events.ResolveResponse,
}  # fmt: skip
