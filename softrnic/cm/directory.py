"""Tables of conversations: who is meant by these ids, and is there room for one more.

Decides nothing about messages or states: `moved` is told of every change of state and keeps the tables true
to it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container

from softrnic.cm.conversation import (
    Address,
    Config,
    Connection,
    Conversation,
    Listener,
    Resolution,
    Role,
)
from softrnic.cm.machine import LINGERING, PENDING, State
from softrnic.errors import VerbsError


class Directory:
    """Listeners by service id, conversations by our id, by the peer's id and by the peer's QP."""

    def __init__(self, random_bits: Callable[[int], int], config: Config) -> None:
        self._random_bits = random_bits
        self._config = config
        self._listeners: dict[tuple[int, bytes | None], Listener] = {}
        self.connections: dict[int, Connection] = {}  # by local comm id
        self.resolving: dict[int, Resolution] = {}  # ours, by request id
        self._requests: dict[tuple[bytes, int], Connection] = {}  # passive, by GID and comm id of the peer
        self._sidr_requests: dict[tuple[bytes, int], Resolution] = {}  # the peers', likewise
        self._remote_qps: dict[tuple[bytes, int], Connection] = {}  # not over yet, by GID and QPN of the peer
        self._lingering: dict[Conversation, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self.connections) + len(self.resolving) + len(self._sidr_requests)

    # --- listeners ------------------------------------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """EADDRINUSE if there is one for the same service id and GID."""
        key = listener.service_id, listener.gid
        if key in self._listeners:
            raise VerbsError(errno.EADDRINUSE, f"service id 0x{listener.service_id:016x} is taken")
        self._listeners[key] = listener

    def remove_listener(self, listener: Listener) -> None:
        key = listener.service_id, listener.gid
        if self._listeners.get(key) is listener:
            del self._listeners[key]

    def listener(self, service_id: int, gid: bytes) -> Listener | None:
        """Who listens on that GID, or else on all."""
        return self._listeners.get((service_id, gid)) or self._listeners.get((service_id, None))

    # --- who is meant ---------------------------------------------------------------------------------------

    def connection(self, local_id: int, remote_id: int) -> Connection | None:
        """The connection both of whose comm ids are named."""
        connection = self.connections.get(local_id)
        return connection if connection is not None and connection.remote_comm_id == remote_id else None

    def request(self, peer: Address, comm_id: int) -> Connection | None:
        """The connection a peer has asked for under its own comm id."""
        return self._requests.get((peer.gid, comm_id))

    def sidr_request(self, peer: Address, request_id: int) -> Resolution | None:
        return self._sidr_requests.get((peer.gid, request_id))

    def remote_qp(self, peer: Address, qpn: int) -> Connection | None:
        """The connection that QP of the peer takes part in."""
        return self._remote_qps.get((peer.gid, qpn))

    # --- room -----------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return len(self) >= self._config.max_conversations

    def has_room(self, listener: Listener) -> bool:
        """For another request of a peer."""
        return listener.pending < listener.backlog and not self.is_full

    def crowded_out(self) -> Conversation | None:
        """The oldest of those that are only remembered, if they are too many."""
        if len(self._lingering) <= self._config.max_lingering:
            return None
        return next(iter(self._lingering))

    def new_id(self, taken: Container[int]) -> int:
        """A comm id or request id that is free and cannot be guessed."""
        while (number := self._random_bits(32)) == 0 or number in taken:
            pass
        return number

    # --- changes --------------------------------------------------------------------------------------------

    def moved(self, conversation: Conversation, before: State) -> None:
        """The conversation has left the state `before`."""
        after = conversation.state
        if conversation.listener is not None:
            conversation.listener.pending += (after in PENDING) - (before in PENDING)
        if after is State.CLOSED:
            self._forget(conversation)
        else:
            self._remember(conversation)
        if after in LINGERING:
            self._lingering[conversation] = None

    def _remember(self, conversation: Conversation) -> None:
        gid = conversation.peer.gid
        match conversation:
            case Connection():
                self.connections[conversation.local_comm_id] = conversation
                if conversation.role is Role.PASSIVE:
                    self._requests[gid, conversation.remote_comm_id] = conversation
                if conversation.state in LINGERING:
                    self._forget_qp(conversation)
                elif conversation.remote_qpn:
                    self._remote_qps[gid, conversation.remote_qpn] = conversation
            case Resolution() if conversation.listener is None:
                self.resolving[conversation.sidr_req.request_id] = conversation
            case Resolution():
                self._sidr_requests[gid, conversation.sidr_req.request_id] = conversation

    def _forget(self, conversation: Conversation) -> None:
        gid = conversation.peer.gid
        self._lingering.pop(conversation, None)
        match conversation:
            case Connection():
                self._forget_qp(conversation)
                self.connections.pop(conversation.local_comm_id, None)
                if conversation.role is Role.PASSIVE:
                    self._requests.pop((gid, conversation.remote_comm_id), None)
            case Resolution() if conversation.listener is None:
                self.resolving.pop(conversation.sidr_req.request_id, None)
            case Resolution():
                self._sidr_requests.pop((gid, conversation.sidr_req.request_id), None)

    def _forget_qp(self, connection: Connection) -> None:
        key = connection.peer.gid, connection.remote_qpn
        if self._remote_qps.get(key) is connection:
            del self._remote_qps[key]
