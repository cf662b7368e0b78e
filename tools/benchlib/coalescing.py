"""Receive coalescing: what arrives merged at a raw port when the sender sends single packets, and whether it is right.

A veth pair stands for a link and a NIC. Its sending end has no TCP offloads, for only then does veth hand everything to
the receiver's NAPI as a NIC does; the receiving end has GRO and its two extensions on or off, and holds packets for a
while (`gro_flush_timeout`), or every single packet would be a poll of its own: a NIC moderates its interrupts. What is
sent are single packets as other devices send them, and super-frames that are cut before the link, as on a wire.
"""

from __future__ import annotations

import statistics
import subprocess
from dataclasses import dataclass

import numpy as np

from benchlib.frames import Flow, fill, packet, super_frame
from benchlib.moving import FRAMES, ONE_ID, WRONG
from benchlib.rates import SINGLE_BURST, SUPER_BURST, compile_for, cpu_rate, wall_rate
from benchlib.wires import Wire, packet_sockets, two_namespaces
from netio import netdev
from netio.netns import Namespace
from softrnic.layout import FrameRing, make_ring

SIZE = 4112  # UDP payload of a WRITE MIDDLE of path MTU 4096
BITS = SIZE * 8 / 1e9  # Gb per packet
CUT = 15  # packets in a super-frame
_TSO = ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation")
_GRO, _FORWARDING, _LIST = "rx-gro", "rx-udp-gro-forwarding", "rx-gro-list"
HOLD_NS = 20_000


@dataclass(frozen=True)
class Sender:
    """How the packets are made."""

    name: str
    v6: bool = False
    checksum: bool = True
    counting: bool = True
    """Identifications count up through a burst; else all are 0."""
    cut: bool = False

    def fill(self, flow: Flow, tx: FrameRing) -> None:
        """Put a burst into the ring."""
        if self.cut:
            fill(tx, [super_frame(flow, SIZE, CUT, ip_id=1000 * i) for i in range(SUPER_BURST)], SIZE)
            return
        ids = range(SINGLE_BURST) if self.counting else [0] * SINGLE_BURST
        fill(tx, [packet(flow, bytes(SIZE - 16), ip_id=i, checksum=self.checksum) for i in ids], 0)


SENDERS = (
    Sender("IPv4, checksum 0", checksum=False),
    Sender("IPv4, checksum"),
    Sender("IPv4, checksum, identification 0", counting=False),
    Sender("IPv6, checksum left to the device", v6=True),
    Sender("IPv4, super-frames cut on the way", cut=True),
)


@dataclass(frozen=True)
class Receiver:
    """How the receiving end is set."""

    name: str
    features: tuple[str, ...] = ()
    shielded: bool = True
    """And with it a UDP socket that asks for GRO."""
    hold_ns: int = 0

    def prepare(self, ns: Namespace) -> None:
        """Set the device up. sysfs shows the devices of the namespace it is mounted from."""
        _set_features(ns, self.features, True)
        if self.hold_ns:
            knob = "/sys/class/net/eth0/gro_flush_timeout"
            script = f"mount -t sysfs sysfs /sys && echo {self.hold_ns} >{knob}"
            with ns.entered():
                subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True)


RECEIVERS = (
    Receiver("nothing"),
    Receiver("nothing, no shield", shielded=False),
    Receiver("GRO", (_GRO,)),
    Receiver("GRO, no shield", (_GRO,), shielded=False),
    Receiver("GRO and forwarding, no shield", (_GRO, _FORWARDING), shielded=False),
    Receiver("GRO and list, no shield", (_GRO, _LIST), shielded=False),
    Receiver("GRO, held", (_GRO,), hold_ns=HOLD_NS),
)


@dataclass
class Coalesced:
    """One sender, one receiver."""

    wall: float
    """Packets per second that arrived and had their ICRC checked."""
    cpu: float
    """Packets per second of processor time, not looked at, of both ends and ksoftirqd."""
    per_frame: float
    one_id: float
    """The share of packets whose ICRC is right if all packets of their frame have one identification."""
    wrong: float
    """The share of packets whose ICRC is not right."""


def _set_features(ns: Namespace, names: tuple[str, ...], on: bool) -> None:
    with ns.entered():
        for name in names:
            netdev.set_feature("eth0", name, on)


def coalesce(sender: Sender, receiver: Receiver, seconds: float) -> Coalesced:
    """Flood one link."""
    with two_namespaces() as ns:
        _set_features(ns[0], (*_TSO, "tx-udp-segmentation"), False)
        receiver.prepare(ns[1])
        with packet_sockets(ns, shielded=receiver.shielded) as wire:
            if sender.v6:
                wire.addresses = ("fd00::1", "fd00::2")
            return _flood(wire, sender, seconds)


def _flood(wire: Wire, sender: Sender, seconds: float) -> Coalesced:
    compile_for(wire)
    n, count = (SUPER_BURST, CUT) if sender.cut else (SINGLE_BURST, 1)
    tx = make_ring(n)
    sender.fill(wire.flow, tx)
    found = np.zeros(4, np.int64)
    wall, cpu = wall_rate(wire, tx, n, count, seconds, found), cpu_rate(wire, tx, n, count, seconds)
    packets = max(1, int(found[:FRAMES].sum()))
    per_frame = packets / max(1, int(found[FRAMES]))
    return Coalesced(wall, cpu, per_frame, int(found[ONE_ID]) / packets, int(found[WRONG]) / packets)


def report(seconds: float, runs: int) -> dict[str, float]:
    """Every sender to every receiver, the runs going round: a line each, figures by name."""
    links = [(sender, receiver) for sender in SENDERS for receiver in RECEIVERS]
    samples: dict[str, list[Coalesced]] = {}
    for _ in range(runs):
        for sender, receiver in links:
            samples.setdefault(f"{sender.name}; {receiver.name}", []).append(coalesce(sender, receiver, seconds))
    found: dict[str, float] = {}
    for where, some in samples.items():
        wall, cpu = statistics.median(s.wall for s in some), statistics.median(s.cpu for s in some)
        per_frame, one_id = (statistics.median(getattr(s, name) for s in some) for name in ("per_frame", "one_id"))
        wrong = max(s.wrong for s in some)
        print(
            f"{where:64} wall {wall * BITS:5.1f} Gb/s {wall / 1e6:5.2f} M/s  cpu {cpu * BITS:5.1f} Gb/s "
            f" {per_frame:4.1f} packets a frame  one identification {one_id:.0%}  ICRC wrong {wrong:.1%}",
            flush=True,
        )
        found[f"{where}, wall, Gb/s"], found[f"{where}, cpu, Gb/s"] = wall * BITS, cpu * BITS
        found[f"{where}, packets a frame"] = per_frame
        found[f"{where}, ICRC wrong"] = wrong
    return found
