"""The lab: a bridge, a guest with Linux soft-RoCE on it, and a namespace of ours whose `sr0` is a veth to the bridge.

Decides addresses and how our hosts come to be on the wire, with faults and a capture around their port. What is tried
on it is the business of the tests. sr0 has addresses as any Ethernet device: there the stock programs meet us over
TCP, and RoCEv2 goes to our NIC. The namespace is not the bridge's, whose kernel would answer ARP for sr0 as well.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netio import netns
from netio.fault import FaultPort, Faults
from netio.pcap import PcapPort
from netio.port import Port
from softrnic.control.host import Host, Wrap, open_raw, open_tap
from tools.vmlib import Guest, Process, Segment, get_image

MARKS = [
    pytest.mark.qemu,
    pytest.mark.privileged("netns", "tun"),
    pytest.mark.timeout(600),  # the first to run may have to compile, and boots
]

PREFIXES = {4: 24, 6: 64}
GUEST = {4: "10.9.0.1", 6: "fd00:9::1"}
OURS = {4: "10.9.0.2", 6: "fd00:9::2"}
TAP = {4: "10.9.0.3", 6: "fd00:9::3"}
IFNAME = "sr0"
MTU = 9000
ACCEPT_SECONDS = 20.0
"""What a program in the guest may take to start and connect, on a busy machine."""


def interface(addresses: dict[int, str], version: int) -> str:
    """An address with its prefix length."""
    return f"{addresses[version]}/{PREFIXES[version]}"


class Lab:
    """One guest, booted, and our end of the wire."""

    def __init__(self, segment: Segment, guest: Guest, namespace: netns.Namespace) -> None:
        self.segment = segment
        self.guest = guest
        self._namespace = namespace
        self._mtu = MTU

    @contextlib.contextmanager
    def host(
        self,
        *,
        capture: Path | None = None,
        faults: tuple[Faults, Faults] | None = None,
        seed: int = 1,
        tap: bool = False,
        version: int = 4,
    ) -> Iterator[Host]:
        """A new host of ours. Without faults and capture its port is bare, and pumped by compiled code.

        faults: what befalls packets that we send, and that we receive. The capture has what is on the wire. The
        outermost part of the host's port is then a FaultPort, whose faults may be changed while it runs.
        tap: the host is the user side of a tap with the address TAP[version], and answers ARP and ND itself.
        """

        def wrap(port: Port) -> Port:
            if capture:
                port = PcapPort(port, capture)
            return FaultPort(port, tx=faults[0], rx=faults[1], seed=seed) if faults else port

        with self._open_tap(version, wrap) if tap else open_raw(IFNAME, ns=self._namespace, wrap=wrap) as host:
            yield host

    def _open_tap(self, version: int, wrap: Wrap) -> Host:
        address = ipaddress.ip_interface(interface(TAP, version))
        host = self.segment.call(open_tap, address, ifname="srtap0", mtu=self._mtu, wrap=wrap)
        self.segment.run("ip", "link", "set", "srtap0", "master", self.segment.bridge)
        return host

    # --- TCP, beside ----------------------------------------------------------------------------------------

    def listen(self, port: int) -> socket.socket:
        """A listening socket of our side's kernel."""
        with self._namespace.entered():
            listener = socket.create_server(("", port))
        listener.settimeout(ACCEPT_SECONDS)
        return listener

    def dial(self, port: int) -> socket.socket:
        """A connection from there to the guest."""
        with self._namespace.entered():
            return socket.create_connection((GUEST[4], port), ACCEPT_SECONDS)

    @contextlib.contextmanager
    def softrnic(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """The command line in a process of its own, beside sr0; killed at the end if it still runs."""
        program = [sys.executable, "-c", "from softrnic.control.cli import main; raise SystemExit(main())", *words]
        entering = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace.fd}", *program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(entering, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    # --- the guest ------------------------------------------------------------------------------------------

    def gid_index(self, version: int) -> int:
        """Of the guest's address: its programs' option -g or -x."""
        return self.guest.gid_index(GUEST[version])

    @contextlib.contextmanager
    def server(self, command: str, *, port: int | None = 18515) -> Iterator[Process]:
        """A server in the guest, from when it listens (port None: to the connection manager) to its end."""
        with self.guest.spawn(command) as process:
            if port is None:
                self.guest.wait_cm_listening(process)
            else:
                self.guest.wait_listening(process, port)
            yield process

    def switch_drops(self) -> int:
        """Packets that the bridge had no room for, on any of its ports."""
        links = json.loads(self.segment.run("ip", "-j", "-s", "link", "show", "master", self.segment.bridge))
        return sum(link["stats64"]["tx"]["dropped"] for link in links)

    def versions(self) -> dict[str, str]:
        """What the peer is."""
        library = next(get_image().tree.root.glob("usr/lib/*/libibverbs.so.1.*.*"))
        perftest = self.guest.run("ib_write_bw --version").stdout.split()[-1]  # and exits as if that were an error
        qemu = self.guest.qmp.execute("query-version")["qemu"]
        return {
            "Linux": self.guest.check("uname -r").strip(),
            "rdma-core": ".".join(library.name.split(".")[-2:]),
            "perftest": perftest,
            "QEMU": ".".join(str(qemu[part]) for part in ("major", "minor", "micro")),
        }

    def set_mtu(self, mtu: int) -> None:
        """Of the guest's device and ours: RDMA MTUs follow, for hosts opened from now on."""
        if mtu != self._mtu:
            self.guest.check(f"ip link set eth0 mtu {mtu}")
            with self._namespace.netlink() as ip:
                ip.link("set", index=ip.link_lookup(ifname=IFNAME)[0], mtu=mtu)
            self._mtu = mtu


@contextlib.contextmanager
def open_lab() -> Iterator[Lab]:
    """All of it, gone when the context ends, or the process."""
    with contextlib.ExitStack() as stack:
        segment = stack.enter_context(Segment.create("br0"))
        namespace = stack.enter_context(netns.namespace())
        with contextlib.closing(segment.call(netns.current)) as bridged:
            netns.veth(namespace, IFNAME, bridged, "sr0-port", mtu=MTU)
        segment.run("ip", "link", "set", "sr0-port", "master", segment.bridge)
        for version in (4, 6):
            netns.add_address(namespace, IFNAME, interface(OURS, version))
        guest = Guest(segment, [interface(GUEST, version) for version in (4, 6)], mtu=MTU)
        stack.enter_context(guest)
        yield Lab(segment, guest, namespace)
