"""Address resolution for addresses that no kernel answers for: ARP (RFC 826), IPv6 ND (RFC 4861).

Those are all addresses of a port whose user side is the NIC itself, and those of the functions of any port.
`Neighbours` decides who has which Ethernet address, and says what to send; no I/O, time is an argument.
`NeighbourPort` puts one behind a bare port: the port's kernel sets ARP and ND frames aside (netio/slow.py).

Hostile frames: replies nobody asked for change known entries only, the cache is bounded, and a malformed
frame is dropped and counted.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from netio.bare import BarePort
from netio.header import ETH_ARP, ETH_IPV6, PROTO_ICMPV6
from netio.middleware import Middleware, put_frame
from netio.port import PortFlag, PortTables
from netio.slow import take_slow
from softrnic.layout import FrameRing, make_ring

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

BROADCAST = b"\xff" * 6
REACHABLE_NS = 30_000_000_000  # RFC 4861 10: REACHABLE_TIME; used for ARP too
RETRANSMIT_NS = 1_000_000_000  # RETRANS_TIMER
MAX_SOLICITATIONS = 3  # MAX_MULTICAST_SOLICIT
CACHE_ENTRIES = 1024

_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_REQUEST, _ARP_REPLY = 1, 2
_ND_SOLICIT, _ND_ADVERT = 135, 136
_SOLICITED, _OVERRIDE = 0x40000000, 0x20000000
_OPTION_SOURCE, _OPTION_TARGET = 1, 2
_UNSPECIFIED = ipaddress.IPv6Address(0)
_ALL_NODES = ipaddress.IPv6Address("ff02::1")


@dataclass(slots=True)
class _Entry:
    """What is known of a neighbour. mac None: being asked for."""

    mac: bytes | None
    expires: int
    """Known: when it must be asked for again. Being asked for: when to ask next."""
    asked: int = 0


def multicast_mac(address: IpAddress) -> bytes:
    """The Ethernet address of an IP multicast group (RFC 1112 6.4, RFC 2464 7)."""
    if address.version == 6:
        return b"\x33\x33" + address.packed[12:]
    return b"\x01\x00\x5e" + bytes([address.packed[1] & 0x7F]) + address.packed[2:]


@dataclass
class Neighbours:
    """ARP and ND of one port: answers for `addresses`, finds others. `mac` is that of every address without its own."""

    mac: bytes
    addresses: list[IpInterface] = field(default_factory=list)
    gateways: list[IpAddress] = field(default_factory=list)
    """Next hops for what is on no network of ours, one per IP version."""
    malformed: int = 0

    def __post_init__(self) -> None:
        self._cache: OrderedDict[IpAddress, _Entry] = OrderedDict()
        self._macs: dict[IpAddress, bytes] = {}

    # --- our own --------------------------------------------------------------------------------------------

    def add(self, address: IpInterface, mac: bytes) -> None:
        """Answer for one more address from now on, which has an Ethernet address of its own."""
        self.remove(address.ip)
        self.addresses.append(address)
        self._macs[address.ip] = mac
        self._cache.pop(address.ip, None)

    def remove(self, ip: IpAddress) -> None:
        """Answer for this address no more."""
        self.addresses = [own for own in self.addresses if own.ip != ip]
        self._macs.pop(ip, None)

    def mac_of(self, ip: IpAddress) -> bytes:
        """The Ethernet address of an address of ours."""
        return self._macs.get(ip, self.mac)

    def _owns(self, address: IpAddress) -> bool:
        return any(own.ip == address for own in self.addresses)

    # --- asking ---------------------------------------------------------------------------------------------

    def next_hop(self, address: IpAddress) -> IpAddress | None:
        """Who is asked on the way to an address; None: there is no way."""
        if any(address in own.network for own in self.addresses):
            return address
        if address.version == 6 and address.is_link_local:
            return address
        return next((gateway for gateway in self.gateways if gateway.version == address.version), None)

    def lookup(self, address: IpAddress, now: int) -> bytes | None:
        """The Ethernet address on the way to `address`, if it is known. resolve() asks for it."""
        if address.is_multicast:
            return multicast_mac(address)
        if self._owns(address):
            return self.mac_of(address)
        entry = self._cache.get(hop) if (hop := self.next_hop(address)) else None
        return entry.mac if entry and now < entry.expires else None

    def resolve(self, address: IpAddress, now: int) -> Iterator[bytes]:
        """Frames to send in order to find out; none if it is known, being asked for, or there is no way."""
        hop = self.next_hop(address)
        if hop is None or self.lookup(address, now):
            return
        entry = self._cache.get(hop)
        if entry and entry.mac is None:
            return
        self._store(hop, _Entry(None, now + RETRANSMIT_NS, asked=1))
        yield from self._ask(hop)

    def on_timer(self, now: int) -> Iterator[bytes]:
        """Ask again where no answer came; give up after MAX_SOLICITATIONS."""
        for address, entry in list(self._cache.items()):
            if entry.mac is None and now >= entry.expires:
                if entry.asked == MAX_SOLICITATIONS:
                    del self._cache[address]
                    continue
                entry.asked += 1
                entry.expires = now + RETRANSMIT_NS
                yield from self._ask(address)

    def next_deadline(self) -> int | None:
        """When on_timer() has something to do."""
        return min((entry.expires for entry in self._cache.values() if entry.mac is None), default=None)

    def _ask(self, hop: IpAddress) -> Iterator[bytes]:
        own = self._source_for(hop)
        if own is None:
            return
        if hop.version == 4:
            yield self._arp(_ARP_REQUEST, own, bytes(6), hop, BROADCAST)
        else:
            group = ipaddress.IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + hop.packed[13:])
            body = bytes(4) + hop.packed + _nd_option(_OPTION_SOURCE, self.mac_of(own))
            yield self._icmpv6(multicast_mac(group), own, group, _ND_SOLICIT, body)

    def _source_for(self, hop: IpAddress) -> IpAddress | None:
        """Our address on the neighbour's network, else any of its version."""
        same = [own for own in self.addresses if own.version == hop.version]
        best = next((own for own in same if hop in own.network), same[0] if same else None)
        return best.ip if best else None

    # --- answering ------------------------------------------------------------------------------------------

    def receive(self, frame: bytes, now: int) -> Iterator[bytes]:
        """Learn from a frame; yields the answer, if there must be one. Tagged frames are not for us."""
        ethertype = int.from_bytes(frame[12:14], "big")
        if ethertype == ETH_ARP:
            yield from self._receive_arp(frame[14:], now)
        elif ethertype == ETH_IPV6:
            yield from self._receive_nd(frame[14:], now)

    def _receive_arp(self, data: bytes, now: int) -> Iterator[bytes]:
        if len(data) < _ARP.size:
            self.malformed += 1
            return
        hardware, protocol, hlen, plen, op, sha, spa, _, tpa = _ARP.unpack_from(data)
        if (hardware, protocol, hlen, plen) != (1, 0x0800, 6, 4) or not _is_unicast(sha):
            self.malformed += 1
            return
        sender, target = ipaddress.IPv4Address(spa), ipaddress.IPv4Address(tpa)
        asked = op == _ARP_REQUEST and self._owns(target)
        self._learn(sender, sha, now, create=asked)
        if asked and not self._owns(sender):
            yield self._arp(_ARP_REPLY, target, sha, sender, sha)

    def _receive_nd(self, data: bytes, now: int) -> Iterator[bytes]:
        if len(data) > 40 and data[40] not in (_ND_SOLICIT, _ND_ADVERT):
            return  # router discovery and redirects: routes are the caller's
        # RFC 4861 7.1: hop limit 255 proves that no router has passed it on
        if len(data) < 64 or data[6] != PROTO_ICMPV6 or data[7] != 255 or data[41] != 0:
            self.malformed += 1
            return
        length = int.from_bytes(data[4:6], "big")
        message = data[40 : 40 + length]
        source = ipaddress.IPv6Address(data[8:24])
        if len(message) != length or length < 24 or _icmpv6_sum(data[8:40], message) != 0xFFFF:
            self.malformed += 1
            return
        target = ipaddress.IPv6Address(message[8:24])
        options = dict(_nd_options(message[24:]))
        if message[0] == _ND_ADVERT:
            if link := options.get(_OPTION_TARGET):
                self._learn(target, link, now, create=False)
        elif message[0] == _ND_SOLICIT and self._owns(target):
            link = options.get(_OPTION_SOURCE)
            if source == _UNSPECIFIED:  # RFC 4862 5.4.3: somebody probes for our address before taking it
                yield self._advert(target, multicast_mac(_ALL_NODES), _ALL_NODES, _OVERRIDE)
            elif link and _is_unicast(link):
                self._learn(source, link, now, create=True)
                yield self._advert(target, link, source, _SOLICITED | _OVERRIDE)

    def _learn(self, address: IpAddress, mac: bytes, now: int, *, create: bool) -> None:
        """RFC 826: an entry that is there is updated by whatever we hear; a new one is made for who asks us."""
        if not _is_unicast(mac) or int(address) == 0 or address.is_multicast or self._owns(address):
            return
        if create or address in self._cache:
            self._store(address, _Entry(mac, now + REACHABLE_NS))

    def _store(self, address: IpAddress, entry: _Entry) -> None:
        self._cache[address] = entry
        self._cache.move_to_end(address)
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)

    # --- telling --------------------------------------------------------------------------------------------

    def announce(self, address: IpAddress) -> bytes:
        """Tell everybody that we have this address now: gratuitous ARP (RFC 5227 3), unsolicited NA (RFC
        4861 7.2.6).
        """
        if address.version == 4:
            return self._arp(_ARP_REQUEST, address, bytes(6), address, BROADCAST)
        return self._advert(address, multicast_mac(_ALL_NODES), _ALL_NODES, _OVERRIDE)

    def _arp(self, op: int, sender: IpAddress, target_mac: bytes, target: IpAddress, to: bytes) -> bytes:
        mac = self.mac_of(sender)
        packet = _ARP.pack(1, 0x0800, 6, 4, op, mac, sender.packed, target_mac, target.packed)
        return to + mac + struct.pack("!H", ETH_ARP) + packet + bytes(18)

    def _advert(self, target: IpAddress, to: bytes, destination: IpAddress, flags: int) -> bytes:
        body = struct.pack("!I", flags) + target.packed + _nd_option(_OPTION_TARGET, self.mac_of(target))
        return self._icmpv6(to, target, destination, _ND_ADVERT, body)

    def _icmpv6(self, to: bytes, source: IpAddress, destination: IpAddress, kind: int, body: bytes) -> bytes:
        addresses = source.packed + destination.packed
        message = struct.pack("!BBH", kind, 0, 0) + body
        checksum = _icmpv6_sum(addresses, message) ^ 0xFFFF
        message = message[:2] + struct.pack("!H", checksum) + message[4:]
        header = struct.pack("!IHBB", 6 << 28, len(message), PROTO_ICMPV6, 255)
        return to + self.mac_of(source) + struct.pack("!H", ETH_IPV6) + header + addresses + message


def _is_unicast(mac: bytes) -> bool:
    return len(mac) == 6 and not mac[0] & 1 and mac != bytes(6)


def _nd_option(kind: int, mac: bytes) -> bytes:
    return bytes([kind, 1]) + mac


def _nd_options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each option; a length of 0 ends the list, as the whole message is to be dropped
    then.
    """
    while len(data) >= 8 and data[1]:
        yield data[0], data[2 : 8 * data[1]]
        data = data[8 * data[1] :]


def _icmpv6_sum(addresses: bytes, message: bytes) -> int:
    """Folded one's complement sum of pseudo-header and message; 0xffff if the message carries the right
    checksum.
    """
    data = addresses + struct.pack("!II", len(message), PROTO_ICMPV6) + message + bytes(len(message) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class NeighbourPort(Middleware):
    """A bare port together with its Neighbours.

    The fast pump works on `tables`; it calls service() when port_slow_waiting(), and at next_deadline(). While there is
    nobody to answer for, ARP and ND are not even looked for.
    """

    def __init__(self, inner: BarePort, neighbours: Neighbours) -> None:
        super().__init__(inner)
        self.neighbours = neighbours
        self._bare = inner
        self._ring = make_ring(4)
        if neighbours.addresses:
            self._listen()

    def _listen(self) -> None:
        self._bare.tables.port["flags"] |= PortFlag.DIVERT
        self._bare.hear_neighbours()

    @property
    def tables(self) -> PortTables:
        return self._bare.tables

    def recv_burst(self, rx: FrameRing, now: int) -> int:
        n = self._bare.recv_burst(rx, now)
        self.service(now)
        return n

    def service(self, now: int) -> None:
        """Answer what was asked, ask again where no answer came."""
        while frame := take_slow(self._bare.tables):
            self._send(self.neighbours.receive(frame, now), now)
        self._send(self.neighbours.on_timer(now), now)

    def resolve(self, address: IpAddress, now: int) -> bytes | None:
        """The Ethernet address on the way to `address`; None: asked for, try again after frames have come."""
        mac = self.neighbours.lookup(address, now)
        if mac is None:
            self._send(self.neighbours.resolve(address, now), now)
        return mac

    def announce(self, now: int, addresses: Iterable[IpAddress] | None = None) -> None:
        """Tell everybody of these addresses, or of all of ours: after taking them over from another place."""
        if addresses is None:
            addresses = [own.ip for own in self.neighbours.addresses]
        self._send((self.neighbours.announce(ip) for ip in addresses), now)

    def add(self, address: IpInterface, mac: bytes) -> None:
        """Receive what is sent to one more address, and answer for it."""
        self._bare.join(mac)
        self.neighbours.add(address, mac)
        self._listen()

    def retire(self, ip: IpAddress) -> None:
        """Answer for an address no more, but go on receiving what is sent to its MAC."""
        self.neighbours.remove(ip)

    def remove(self, ip: IpAddress, mac: bytes) -> None:
        """The inverse of add()."""
        self.neighbours.remove(ip)
        self._bare.leave(mac)

    def _send(self, frames: Iterable[bytes], now: int) -> None:
        for frame in frames:
            put_frame(self._ring, 0, frame)
            self._bare.send_burst(self._ring, 1, now)

    def next_deadline(self) -> int | None:
        return self.neighbours.next_deadline()
