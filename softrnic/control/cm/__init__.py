"""Connections in the manner of streams: listen, accept, connect, by IP address and port.

    async with cm.listen(device, "10.0.0.1", 7174) as listener:
        connection = await listener.accept()

    connection = await cm.connect(device, ("10.0.0.1", 7174), private_data=b"hello")
    connection.qp.post_send(...)
    await connection.disconnect()

    service = await cm.resolve(device, ("10.0.0.1", 7175))  # a UD QP: number, Q_Key and address

Peers may be programs on librdmacm (rdma_cm port spaces TCP and UDP), or this module. The protocol is softrnic.cm;
what is here owns QP1 of the device (gsi.py), runs the protocol on it (agent.py), takes QPs through their states
(endpoint.py) and puts all that behind a few calls (stream.py, datagram.py).
"""

from __future__ import annotations

from softrnic.control.cm.agent import Agent
from softrnic.control.cm.datagram import (
    UDP_QKEY,
    DatagramListener,
    DatagramRequest,
    DatagramService,
    listen_datagram,
    resolve,
)
from softrnic.control.cm.endpoint import (
    Connection,
    ConnectionLostError,
    ConnParam,
    QpInit,
    RejectedError,
    ServiceError,
    UnreachableError,
)
from softrnic.control.cm.stream import ConnectRequest, Listener, connect, listen

__all__ = [
    "UDP_QKEY", "Agent", "ConnParam", "ConnectRequest", "Connection", "ConnectionLostError", "DatagramListener",
    "DatagramRequest", "DatagramService", "Listener", "QpInit", "RejectedError", "ServiceError", "UnreachableError",
    "connect", "listen", "listen_datagram", "resolve",
]  # fmt: skip
