"""Connections in the manner of streams: listen, accept, connect, by IP address and port.

    async with cm.listen(device, "10.0.0.1", 7174) as listener:
        connection = await listener.accept()

    connection = await cm.connect(device, ("10.0.0.1", 7174), private_data=b"hello")
    connection.qp.post_send(...)
    await connection.disconnect()

    service = await cm.resolve(device, ("10.0.0.1", 7175))  # a UD QP: number, Q_Key and address

Peers may be programs on librdmacm (rdma_cm port spaces TCP and UDP), or this module. The protocol is softrnic.cm;
what is here owns QP1 of the device (gsi.py), runs the protocol on it (agent.py) and takes QPs through their states
(endpoint.py).
"""

from __future__ import annotations

from softrnic.control.cm.agent import Agent
from softrnic.control.cm.endpoint import (
    UDP_QKEY,
    Connection,
    ConnectionLostError,
    ConnectRequest,
    ConnParam,
    DatagramListener,
    DatagramRequest,
    DatagramService,
    Listener,
    QpInit,
    RejectedError,
    UnreachableError,
    connect,
    listen,
    listen_datagram,
    resolve,
)

__all__ = [
    "UDP_QKEY",
    "Agent",
    "ConnParam",
    "ConnectRequest",
    "Connection",
    "ConnectionLostError",
    "DatagramListener",
    "DatagramRequest",
    "DatagramService",
    "Listener",
    "QpInit",
    "RejectedError",
    "UnreachableError",
    "connect",
    "listen",
    "listen_datagram",
    "resolve",
]
