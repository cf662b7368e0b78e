"""The steering program: one logic for three hooks of the kernel.

    Ethernet [VLAN] / IPv4 or IPv6 / UDP 4791 / BTH  ->  (destination address, QPN)  ->  rule  ->  verdict

It decides which rule a packet falls under and does what the rule says. It must never look past the BTH: PSNs,
opcodes and the ICRC are the engine's. What is not RoCEv2 is left alone. The steps are in file order; `steer`
calls them one after the other.

    hook    runs                             its verdicts
    xdp     before all else                  host stack / gone / AF_XDP socket / other interface
    tc      after AF_PACKET, before IP       host stack / gone                 / other interface
    socket  in one AF_PACKET socket          this socket's / not this socket's

So "keep" at tc is "gone" as far as the host is concerned: the AF_PACKET sockets have their copy already, and
the socket hook picks those that a socket is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ebpf.bpf import ProgFlag, ProgType
from ebpf.builder import Builder, Memory, Value
from ebpf.rules import (
    ANY_QPN,
    COUNT_BYTES,
    COUNT_PACKETS,
    KEY,
    KEY_ADDRESS,
    KEY_QPN,
    MAX_QUEUES,
    V4_MAPPED,
    VALUE_ACTION,
    VALUE_BYTES,
    VALUE_DST_MAC,
    VALUE_MACS,
    VALUE_PACKETS,
    VALUE_TARGET,
    Action,
    Counter,
)
from softrnic.spec import QPN_MASK, ROCE_UDP_PORT

ETH_P_IPV4, ETH_P_IPV6, ETH_P_8021Q = 0x0800, 0x86DD, 0x8100
VLAN_VID_MASK = 0x0FFF
IPPROTO_UDP = 17
MAC_ADDRESSES = 12  # bytes of the two at the front of every frame


class MapIndex(IntEnum):
    """The order in which `relocate` is given the maps."""

    RULES    = 0
    COUNTERS = 1
    SOCKETS  = 2  # xdp only


class Helper(IntEnum):
    """Kernel helpers used, by their numbers in include/uapi/linux/bpf.h."""

    SKB_STORE_BYTES  = 9
    REDIRECT         = 23
    SKB_LOAD_BYTES   = 26
    REDIRECT_MAP     = 51
    XDP_GET_BUFF_LEN = 188
    XDP_LOAD_BYTES   = 189
    XDP_STORE_BYTES  = 190


class Xdp(IntEnum):
    """enum xdp_action."""

    DROP     = 1
    PASS     = 2
    REDIRECT = 4


class Tc(IntEnum):
    """TC_ACT_*, and the TCX_* that equal them."""

    NEXT = -1
    SHOT = 2


class XdpMd(IntEnum):
    """Offsets in struct xdp_md."""

    RX_QUEUE_INDEX = 16


class Skb(IntEnum):
    """Offsets in struct __sk_buff."""

    LEN      = 0
    VLAN_TCI = 24
    GSO_SIZE = 176


@dataclass(frozen=True, slots=True)
class Hook:
    """Where the program runs, how it reaches the packet there, and what its return values mean."""

    name: str
    prog_type: ProgType
    prog_flags: int
    load_bytes: Helper
    not_roce: int  # verdict on what is not ours to judge
    host: int  # verdict: the host stack's
    gone: int  # verdict: kept from the host stack


XDP = Hook(
    "xdp", ProgType.XDP, ProgFlag.XDP_HAS_FRAGS, Helper.XDP_LOAD_BYTES,
    not_roce=Xdp.PASS, host=Xdp.PASS, gone=Xdp.DROP,
)  # fmt: skip
TC = Hook("tc", ProgType.SCHED_CLS, 0, Helper.SKB_LOAD_BYTES, not_roce=Tc.NEXT, host=Tc.NEXT, gone=Tc.SHOT)

# A socket filter returns how many bytes of the frame its socket gets.
WHOLE_FRAME, NOTHING = 0xFFFFFFFF, 0


def steering_program(hook: Hook, *, vlan: bool = False) -> Builder:
    """The program of an interface: `hook` is XDP or TC; `vlan`: frames of a VLAN are ours too."""
    b = Builder(f"softrnic_{hook.name}", hook.prog_type, hook.prog_flags)
    frame = Frame(b, hook)
    rule = steer(frame, vlan=vlan)
    count_rule(frame, rule)
    act(frame, rule)
    return b


def socket_program(target: int, *, others: bool, vlan: bool = False) -> Builder:
    """The filter of an AF_PACKET socket of function `target`; `others`: it wants what is not RoCEv2 too."""
    not_roce = WHOLE_FRAME if others else NOTHING
    hook = Hook("socket", ProgType.SOCKET_FILTER, 0, Helper.SKB_LOAD_BYTES, not_roce, NOTHING, NOTHING)
    b = Builder(f"softrnic_f{target}", hook.prog_type, hook.prog_flags)
    rule = steer(Frame(b, hook), vlan=vlan)
    select(b, rule, target)
    return b


class Frame:
    """The frame at hand, as its hook shows it."""

    def __init__(self, b: Builder, hook: Hook) -> None:
        self.b = b
        self.hook = hook
        self.headers = b.variable(0)  # bytes of all headers up to the UDP payload, once known

    def read(self, offset: Value | int, size: int, into: Memory) -> Value:
        """Copy bytes of the frame; the condition is true where the frame is too short for that."""
        return self.b.call(self.hook.load_bytes, self.b.context, offset, into, size) != 0

    def header(self, offset: Value | int, size: int) -> Memory:
        """A header of the frame; a frame without room for it is not RoCEv2."""
        header = self.b.buffer(size)
        with self.b.when(self.read(offset, size, header)):
            self.b.leave(self.hook.not_roce)
        return header

    def length(self) -> Value:
        if self.hook is XDP:
            return self.b.call(Helper.XDP_GET_BUFF_LEN, self.b.context)
        return self.b.context.u32(Skb.LEN)

    def wire_count(self) -> tuple[Value, Value]:
        """(packets, bytes) as they were or would be on the wire: a super-frame counts by its segments."""
        packets, size = self.b.variable(1), self.b.variable(0)
        size.set(self.length())
        if self.hook is not XDP:
            headers, segment = self.headers.get(), self.b.context.u32(Skb.GSO_SIZE)
            with self.b.when(segment != 0):
                packets.set((size.get() - headers + segment - 1) // segment)
                size.set(size.get() + (packets.get() - 1) * headers)
        return packets.get(), size.get()


# --- from the frame to its rule -----------------------------------------------------------------------------


def steer(frame: Frame, *, vlan: bool) -> Memory:
    """The rule for the frame. A frame that has none has left the program."""
    key = frame.b.buffer(KEY.size)
    ethertype, l3 = parse_ethernet(frame, vlan=vlan)
    l4 = parse_ip(frame, ethertype, l3, key)
    check_udp_port(frame, l4)
    parse_bth(frame, l4, key)
    return find_rule(frame, key)


def parse_ethernet(frame: Frame, *, vlan: bool) -> tuple[Value, Value]:
    """(ethertype, offset of the IP header). A frame of a VLAN is another interface's, unless `vlan`.

    On the way to tc and sockets the kernel takes the tag out of the frame and keeps it beside. VLAN 0 is none:
    such a tag has a priority only (IEEE 802.1Q 9.6), and the frame is treated as untagged.
    """
    b = frame.b
    ethernet = frame.header(0, 14)
    ethertype, l3, vid = b.variable(ethernet.be16(12)), b.variable(14), b.variable(0)
    if frame.hook is not XDP:
        vid.set(b.context.u32(Skb.VLAN_TCI) & VLAN_VID_MASK)
    with b.when(ethertype.get() == ETH_P_8021Q):
        tag = frame.header(14, 4)
        vid.set(vid.get() | (tag.be16(0) & VLAN_VID_MASK))
        ethertype.set(tag.be16(2))
        l3.set(18)
    if not vlan:
        with b.when(vid.get() != 0):
            b.leave(frame.hook.not_roce)
    return ethertype.get(), l3.get()


def parse_ip(frame: Frame, ethertype: Value, l3: Value, key: Memory) -> Value:
    """The offset of the UDP header; the destination address goes into the key."""
    b = frame.b
    l4 = b.variable(0)
    with b.when(ethertype == ETH_P_IPV4):
        l4.set(parse_ipv4(frame, l3, key))
    with b.when(ethertype == ETH_P_IPV6):
        l4.set(parse_ipv6(frame, l3, key))
    with b.when(l4.get() == 0):
        b.leave(frame.hook.not_roce)
    return l4.get()


def parse_ipv4(frame: Frame, l3: Value, key: Memory) -> Value:
    """RFC 791. A later fragment has no UDP header; the first one has. No good RoCEv2 sender makes either."""
    b = frame.b
    ip = frame.header(l3, 20)
    version, header_bytes = ip.u8(0) >> 4, (ip.u8(0) & 15) * 4
    fragment_offset = ip.be16(6) & 0x1FFF
    not_udp = (version != 4) | (header_bytes < 20) | (fragment_offset != 0) | (ip.u8(9) != IPPROTO_UDP)
    with b.when(not_udp):
        b.leave(frame.hook.not_roce)
    key.put_u64(KEY_ADDRESS, 0)
    key.put_u32(KEY_ADDRESS + 8, int.from_bytes(V4_MAPPED[8:], "little"))
    key.put_u32(KEY_ADDRESS + 12, ip.u32(16))
    return l3 + header_bytes


def parse_ipv6(frame: Frame, l3: Value, key: Memory) -> Value:
    """RFC 8200.  UDP must follow at once: RoCEv2 packets carry no extension headers."""
    b = frame.b
    ip = frame.header(l3, 40)
    with b.when((ip.u8(0) >> 4 != 6) | (ip.u8(6) != IPPROTO_UDP)):
        b.leave(frame.hook.not_roce)
    for word in range(0, 16, 4):
        key.put_u32(KEY_ADDRESS + word, ip.u32(24 + word))
    return l3 + 40


def check_udp_port(frame: Frame, l4: Value) -> None:
    """Only the destination port tells RoCEv2; the source port is entropy."""
    b = frame.b
    udp = frame.header(l4, 8)
    with b.when(udp.be16(2) != ROCE_UDP_PORT):
        b.leave(frame.hook.not_roce)
    frame.headers.set(l4 + 8)


def parse_bth(frame: Frame, l4: Value, key: Memory) -> None:
    """The destination QPN, IBTA 9.2: bytes 5 to 7 of the BTH.  Without it only rules for any QPN apply."""
    b = frame.b
    bth = b.buffer(8)
    qpn = b.variable(ANY_QPN)
    short = frame.read(l4 + 8, 8, bth)
    with b.when(short):
        count(frame, Counter.NO_BTH)
    with b.when(~short):
        qpn.set(bth.be32(4) & QPN_MASK)
    key.put_u32(KEY_QPN, qpn.get())


def find_rule(frame: Frame, key: Memory) -> Memory:
    """The most particular rule: for address and QPN, else for the address, else for anything."""
    b = frame.b
    rules = b.map(MapIndex.RULES)
    rule = b.pointer_variable(b.lookup(rules, key))
    with b.when(rule.get().is_null()):
        key.put_u32(KEY_QPN, ANY_QPN)
        rule.set(b.lookup(rules, key))
    with b.when(rule.get().is_null()):
        key.put_u64(KEY_ADDRESS, 0)
        key.put_u64(KEY_ADDRESS + 8, 0)
        rule.set(b.lookup(rules, key))
    with b.when(rule.get().is_null()):
        count(frame, Counter.NO_RULE)
        b.leave(frame.hook.host)
    return rule.get()


# --- from the rule to the verdict ---------------------------------------------------------------------------


def act(frame: Frame, rule: Memory) -> None:
    """Do what the rule says, at the xdp and tc hooks."""
    b, hook = frame.b, frame.hook
    action = rule.u32(VALUE_ACTION)
    with b.when(action == Action.PASS):
        count(frame, Counter.PASS)
        b.leave(hook.host)
    with b.when(action == Action.FORWARD):
        forward(frame, rule)
    if hook is XDP:
        with b.when(action == Action.SOCKET):
            redirect_to_socket(frame, rule)
    # What is left is gone for the host: DROP, KEEP, and at tc SOCKET, whose socket hook has run before.
    count(frame, action)
    b.leave(hook.gone)


def forward(frame: Frame, rule: Memory) -> None:
    """Send the frame on with new MAC addresses, but never back to its sender: two hosts could play tennis."""
    b = frame.b
    store_bytes = Helper.XDP_STORE_BYTES if frame.hook is XDP else Helper.SKB_STORE_BYTES
    source = frame.header(6, 6)
    from_there = (source.u32(0) == rule.u32(VALUE_DST_MAC)) & (source.u16(4) == rule.u16(VALUE_DST_MAC + 4))
    with b.when(from_there):
        count(frame, Counter.LOOP)
        b.leave(frame.hook.gone)
    new_macs = rule.plus(VALUE_MACS)
    no_flags = () if frame.hook is XDP else (0,)
    b.call(store_bytes, b.context, 0, new_macs, MAC_ADDRESSES, *no_flags)
    count(frame, Counter.FORWARD)
    b.leave(b.call(Helper.REDIRECT, rule.u32(VALUE_TARGET), 0))


def redirect_to_socket(frame: Frame, rule: Memory) -> None:
    """Into the AF_XDP socket that function `target` has on the queue the frame arrived at."""
    b = frame.b
    queue = b.context.u32(XdpMd.RX_QUEUE_INDEX)
    with b.when(queue >= MAX_QUEUES):
        count(frame, Counter.NO_SOCKET)
        b.leave(Xdp.DROP)
    slot = rule.u32(VALUE_TARGET) * MAX_QUEUES + queue
    verdict = b.call(Helper.REDIRECT_MAP, b.map(MapIndex.SOCKETS), slot, Xdp.DROP)  # DROP: for an empty slot
    with b.when(verdict != Xdp.REDIRECT):
        count(frame, Counter.NO_SOCKET)
        b.leave(Xdp.DROP)
    count(frame, Counter.SOCKET)
    b.leave(Xdp.REDIRECT)


def select(b: Builder, rule: Memory, target: int) -> None:
    """Whether the rule lets the AF_PACKET socket of function `target` have the frame."""
    action = rule.u32(VALUE_ACTION)
    ours = (action == Action.SOCKET) & (rule.u32(VALUE_TARGET) == target)
    with b.when(ours | (action == Action.KEEP)):
        b.leave(WHOLE_FRAME)
    b.leave(NOTHING)


# --- counters -----------------------------------------------------------------------------------------------


def count(frame: Frame, counter: Counter | Value) -> None:
    """One of the interface's counters. A socket hook does not count: tc will see the same frame."""
    b = frame.b
    if frame.hook.prog_type is ProgType.SOCKET_FILTER:
        return
    index = b.buffer(4)
    index.put_u32(0, counter)
    cell = b.lookup(b.map(MapIndex.COUNTERS), index)
    with b.when(~cell.is_null()):
        add(frame, cell, COUNT_PACKETS, COUNT_BYTES)


def count_rule(frame: Frame, rule: Memory) -> None:
    """The rule's own counters."""
    add(frame, rule, VALUE_PACKETS, VALUE_BYTES)


def add(frame: Frame, memory: Memory, packets_at: int, bytes_at: int) -> None:
    """Count the frame in two 64-bit cells, shared by all CPUs."""
    packets, size = frame.wire_count()
    memory.add_u64(packets_at, packets)
    memory.add_u64(bytes_at, size)
