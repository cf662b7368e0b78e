"""The program's verdicts, one by one: BPF_PROG_TEST_RUN runs it in the kernel without any interface."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from ebpf.bpf import Program
from ebpf.program import NOTHING, TC, WHOLE_FRAME, XDP, socket_program, steering_program
from ebpf.rules import Count, Counter, Rule, mac_bytes
from ebpf.table import RuleTable
from tests.ebpf import model
from tests.ebpf.frames import DST4, DST6, DST_MAC, ROCE, SRC4, SRC_MAC, ether, ip, roce, udp

pytestmark = pytest.mark.privileged("bpf", "xsk")

AF_XDP = 44
XDP_DROP, XDP_PASS, XDP_REDIRECT = 1, 2, 4
TC_NEXT, TC_SHOT, TC_REDIRECT = 0xFFFFFFFF, 2, 7
OWN_TARGET = 3
NEW_DST, NEW_SRC = "02:00:00:00:00:aa", "02:00:00:00:00:bb"


@dataclass
class Bench:
    """A table and a program on it."""

    table: RuleTable
    program: Program
    host: int
    gone: int

    def verdict(self, frame: bytes) -> int:
        return self.program.test_run(frame).retval

    def count(self, counter: Counter) -> Count:
        return self.table.counters()[counter]

    def all_counted(self) -> int:
        return sum(count.packets for count in self.table.counters().values())


def shortest_testable(frame: bytes, bench: Bench) -> int:
    """A test run at tc insists on an IP header where the Ethernet header says IP."""
    needed = {b"\x08\x00": 34, b"\x86\xdd": 54} if bench.host == TC_NEXT else {}
    return needed.get(frame[12:14], 14)


def bench_at(table: RuleTable, hook: str, *, vlan: bool) -> Bench:
    if hook == "xdp":
        return Bench(table, table.load(steering_program(XDP, vlan=vlan)), XDP_PASS, XDP_DROP)
    return Bench(table, table.load(steering_program(TC, vlan=vlan)), TC_NEXT, TC_SHOT)


@pytest.fixture(params=["xdp", "tc"])
def bench(request: pytest.FixtureRequest, table: RuleTable) -> Iterator[Bench]:
    made = bench_at(table, request.param, vlan=True)
    with made.program:
        yield made


@pytest.fixture
def xdp(table: RuleTable) -> Iterator[Bench]:
    made = bench_at(table, "xdp", vlan=True)
    with made.program:
        yield made


@pytest.fixture
def tc(table: RuleTable) -> Iterator[Bench]:
    made = bench_at(table, "tc", vlan=True)
    with made.program:
        yield made


# --- which frames are RoCEv2 -------------------------------------------------------------------------------

ROCE_FRAMES = {
    "ipv4": roce(DST4),
    "ipv6": roce(DST6),
    "ipv4 vlan": roce(DST4, vlan=5),
    "ipv6 vlan": roce(DST6, vlan=5),
    "ipv4 options": roce(DST4, options=[IPOption_NOP()] * 40),
    "ipv4 first fragment": bytes(ether() / IP(dst=DST4, flags="MF") / UDP(dport=ROCE) / Raw(bytes(64))),
    "ipv4 priority": roce(DST4, vlan=0),
    "ipv6 priority": roce(DST6, vlan=0),
    "ecn and ttl": roce(DST4, tos=3, ttl=1),
    "jumbo": roce(DST4, payload=bytes(3000)),
}

OTHER_FRAMES = {
    "arp": bytes(ether() / ARP(pdst=DST4) / Raw(bytes(32))),
    "tcp": bytes(ether() / IP(dst=DST4) / TCP(dport=ROCE) / Raw(bytes(32))),
    "icmp": bytes(ether() / IP(dst=DST4) / ICMP() / Raw(bytes(32))),
    "icmpv6": bytes(ether() / IPv6(dst=DST6) / ICMPv6EchoRequest() / Raw(bytes(32))),
    "udp other port": udp(DST4, 4790),
    "udp from the port": bytes(ether() / ip(DST4) / UDP(sport=ROCE, dport=4790) / Raw(bytes(32))),
    "udp other port ipv6": udp(DST6, 4792),
    "ipv4 later fragment": bytes(ether() / IP(dst=DST4, frag=1) / UDP(dport=ROCE) / Raw(bytes(64))),
    "ipv6 fragment": bytes(ether() / IPv6(dst=DST6) / IPv6ExtHdrFragment() / UDP(dport=ROCE) / Raw()),
    "ipv6 extension": bytes(ether() / IPv6(dst=DST6) / IPv6ExtHdrHopByHop() / UDP(dport=ROCE) / Raw()),
    "ipv4 says version 6": bytes(ether() / IP(dst=DST4, version=6) / UDP(dport=ROCE) / Raw(bytes(64))),
    "ipv6 says version 4": bytes(ether() / IPv6(dst=DST6, version=4) / UDP(dport=ROCE) / Raw(bytes(64))),
    # its address stands where the port of a header of 16 bytes would: 18.183 is 4791
    "ipv4 header too short": bytes(ether() / IP(dst="10.0.18.183", ihl=4, proto=17) / Raw(bytes(64))),
    "udp-lite": bytes(ether() / IP(dst=DST4, proto=136) / UDP(dport=ROCE) / Raw(bytes(64))),
    "udp-lite ipv6": bytes(ether() / IPv6(dst=DST6, nh=136) / UDP(dport=ROCE) / Raw(bytes(64))),
    "two tags": bytes(ether(vlan=5) / Dot1Q(vlan=6) / ip(DST4) / UDP(dport=ROCE) / Raw(bytes(64))),
    "infiniband over ethernet": bytes(Ether(dst=DST_MAC, type=0x8915) / Raw(roce(DST4))),
}


@pytest.mark.parametrize("name", ROCE_FRAMES)
def test_roce_is_judged(bench: Bench, name: str) -> None:
    bench.table.add(None, None, Rule.drop())
    assert bench.verdict(ROCE_FRAMES[name]) == bench.gone
    assert bench.count(Counter.DROP) == Count(1, len(ROCE_FRAMES[name]))


@pytest.mark.parametrize("name", OTHER_FRAMES)
def test_the_rest_is_left_alone(bench: Bench, name: str) -> None:
    bench.table.add(None, None, Rule.drop())
    assert bench.verdict(OTHER_FRAMES[name]) == bench.host
    assert bench.all_counted() == 0


@pytest.mark.parametrize("hook", ["xdp", "tc"])
@pytest.mark.parametrize("address", [DST4, DST6])
def test_tagged_frames_are_others_by_default(table: RuleTable, hook: str, address: str) -> None:
    table.add(None, None, Rule.drop())
    bench = bench_at(table, hook, vlan=False)
    with bench.program:
        assert bench.verdict(roce(address, vlan=5)) == bench.host
        assert bench.verdict(roce(address)) == bench.gone
        assert bench.verdict(roce(address, vlan=0)) == bench.gone, "a priority tag is no VLAN"


# --- truncation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ipv4", "ipv6", "ipv4 vlan", "ipv6 vlan", "ipv4 options"])
def test_every_truncation(bench: Bench, name: str) -> None:
    """The verdict changes where the UDP header is whole, the counter where the first half of the BTH is."""
    frame = ROCE_FRAMES[name]
    bench.table.add(None, None, Rule.drop())
    shortest = shortest_testable(frame, bench)
    for size in range(shortest, len(frame)):
        short = frame[:size]
        expected = model.judge(short, {(None, None)}, vlan=True)
        assert bench.verdict(short) == (bench.gone if expected.roce else bench.host), size
    whole_udp = next(size for size in range(len(frame)) if model.judge(frame[:size], set(), vlan=True).roce)
    assert bench.count(Counter.NO_BTH).packets == 8
    assert bench.count(Counter.DROP).packets == len(frame) - whole_udp


def test_no_bth_matches_no_queue_pair(bench: Bench) -> None:
    bench.table.add(DST4, 0, Rule.to_pass())
    bench.table.add(DST4, None, Rule.drop())
    assert bench.verdict(bytes(ether() / ip(DST4) / UDP(dport=ROCE) / Raw(bytes(7)))) == bench.gone
    assert bench.verdict(bytes(ether() / ip(DST4) / UDP(dport=ROCE) / Raw(bytes(8)))) == bench.host


# --- which rule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [DST4, DST6])
@pytest.mark.parametrize("qpn", [0, 1, 0x11, 0xFFFFFF])
def test_exact_rule(bench: Bench, address: str, qpn: int) -> None:
    bench.table.add(address, qpn, Rule.drop())
    assert bench.verdict(roce(address, qpn)) == bench.gone
    assert bench.verdict(roce(address, qpn ^ 2)) == bench.host
    assert bench.table.entry(address, qpn).count == Count(1, len(roce(address, qpn)))


def test_the_most_particular_rule_holds(bench: Bench) -> None:
    rules = {(DST4, 0x11): Rule.drop(), (DST4, None): Rule.to_pass(), (None, None): Rule.keep()}
    for (address, qpn), rule in rules.items():
        bench.table.add(address, qpn, rule)
    frames = {(DST4, 0x11): roce(DST4, 0x11), (DST4, None): roce(DST4, 0x12), (None, None): roce(SRC4, 0x11)}
    for (address, qpn), frame in frames.items():
        bench.verdict(frame)
        assert bench.table.entry(address, qpn).count.packets == 1
        assert bench.count(Counter(rules[address, qpn].action)).packets == 1


def test_an_ipv4_address_is_no_ipv6_address(bench: Bench) -> None:
    bench.table.add(DST6, None, Rule.drop())
    assert bench.verdict(roce(DST4)) == bench.host


def test_no_rule(bench: Bench) -> None:
    assert bench.verdict(roce()) == bench.host
    assert bench.count(Counter.NO_RULE) == Count(1, len(roce()))


def test_a_removed_rule_holds_no_more(bench: Bench) -> None:
    bench.table.add(DST4, 0x11, Rule.drop())
    bench.table.remove(DST4, 0x11)
    assert bench.verdict(roce(DST4, 0x11)) == bench.host
    with pytest.raises(KeyError):
        bench.table.remove(DST4, 0x11)
    with pytest.raises(KeyError):
        bench.table.entry(DST4, 0x11)


def test_a_replaced_rule_counts_anew(bench: Bench) -> None:
    bench.table.add(DST4, 0x11, Rule.drop())
    bench.verdict(roce(DST4, 0x11))
    bench.table.add(DST4, 0x11, Rule.to_pass())
    assert bench.verdict(roce(DST4, 0x11)) == bench.host
    assert bench.table.entry(DST4, 0x11).count.packets == 1


def test_entries_lists_every_rule(table: RuleTable) -> None:
    for qpn in range(100):
        table.add(DST6, qpn, Rule.drop())
    table.add(None, None, Rule.to_pass())
    entries = table.entries()
    assert {entry.qpn for entry in entries} == {*range(100), None}
    assert {entry.address for entry in entries} == {ip_address(DST6), None}


# --- what is done ------------------------------------------------------------------------------------------


def test_pass(bench: Bench) -> None:
    bench.table.add(DST4, None, Rule.to_pass())
    assert bench.verdict(roce()) == bench.host
    assert bench.count(Counter.PASS).packets == 1


def test_keep(tc: Bench) -> None:
    tc.table.add(DST4, None, Rule.keep())
    assert tc.verdict(roce()) == TC_SHOT
    assert tc.count(Counter.KEEP).packets == 1


def test_socket_at_tc_is_kept_from_the_host(tc: Bench) -> None:
    """Its AF_PACKET socket has it by then."""
    tc.table.add(DST4, None, Rule.to_socket(1))
    assert tc.verdict(roce()) == TC_SHOT
    assert tc.count(Counter.SOCKET).packets == 1


def test_socket_at_xdp(xdp: Bench) -> None:
    xdp.table.add(DST4, 0x11, Rule.to_socket(OWN_TARGET))
    xdp.table.add(DST4, 0x12, Rule.to_socket(OWN_TARGET + 1))
    with socket.socket(AF_XDP, socket.SOCK_RAW) as sock:
        xdp.table.add_xsk(sock.fileno(), OWN_TARGET)
        assert xdp.verdict(roce(DST4, 0x11)) == XDP_REDIRECT
        assert xdp.verdict(roce(DST4, 0x12)) == XDP_DROP
    assert xdp.verdict(roce(DST4, 0x11)) == XDP_DROP  # the closed socket has left its slot
    assert xdp.count(Counter.SOCKET).packets == 1
    assert xdp.count(Counter.NO_SOCKET).packets == 2


def test_forward_rewrites_the_addresses_only(bench: Bench) -> None:
    bench.table.add(DST4, 0x11, Rule.forward(1, NEW_DST, NEW_SRC))
    run = bench.program.test_run(roce(DST4, 0x11))
    assert run.retval in (XDP_REDIRECT, TC_REDIRECT)
    assert run.data == mac_bytes(NEW_DST) + mac_bytes(NEW_SRC) + roce(DST4, 0x11)[12:]
    assert bench.count(Counter.FORWARD).packets == 1


def test_forward_never_goes_back(bench: Bench) -> None:
    bench.table.add(DST4, 0x11, Rule.forward(1, SRC_MAC, NEW_SRC))
    run = bench.program.test_run(roce(DST4, 0x11))
    assert run.retval == bench.gone
    assert run.data == roce(DST4, 0x11)
    assert bench.count(Counter.LOOP).packets == 1
    assert bench.count(Counter.FORWARD).packets == 0


@pytest.mark.parametrize("differs_at", range(6))
def test_forward_compares_the_whole_address(bench: Bench, differs_at: int) -> None:
    almost = bytearray(mac_bytes(SRC_MAC))
    almost[differs_at] ^= 0x10
    bench.table.add(DST4, 0x11, Rule.forward(1, bytes(almost), NEW_SRC))
    assert bench.verdict(roce(DST4, 0x11)) in (XDP_REDIRECT, TC_REDIRECT)


# --- super-frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("payload", "packets"), [(50, 1), (104, 1), (105, 2), (1040, 10), (1041, 11)])
@pytest.mark.parametrize("address", [DST4, DST6])
def test_a_super_frame_counts_by_its_segments(tc: Bench, address: str, payload: int, packets: int) -> None:
    headers = len(udp(address, payload=b""))
    frame = bytes(ether() / ip(address) / UDP(dport=ROCE) / Raw(bytes(payload)))
    skb = bytearray(192)
    struct.pack_into("=I", skb, 176, 104)  # gso_size
    tc.table.add(None, None, Rule.keep())
    assert tc.program.test_run(frame, bytes(skb)).retval == TC_SHOT
    assert tc.count(Counter.KEEP) == Count(packets, payload + packets * headers)
    assert tc.table.entry(None, None).count == Count(packets, payload + packets * headers)


# --- the socket hook ---------------------------------------------------------------------------------------

FILTER_RULES = {
    Rule.to_pass(): NOTHING,
    Rule.drop(): NOTHING,
    Rule.keep(): WHOLE_FRAME,
    Rule.to_socket(OWN_TARGET): WHOLE_FRAME,
    Rule.to_socket(OWN_TARGET + 1): NOTHING,
    Rule.forward(1, NEW_DST, NEW_SRC): NOTHING,
}


def filtered(program: Program, frame: bytes) -> int:
    """A test run hides an Ethernet header from socket filters; AF_PACKET sockets show it."""
    return program.test_run(bytes(14) + frame).retval


@pytest.mark.parametrize("rule", FILTER_RULES, ids=lambda rule: f"{rule.action.name} {rule.target}")
@pytest.mark.parametrize("address", [DST4, DST6])
def test_socket_filter(table: RuleTable, rule: Rule, address: str) -> None:
    table.add(address, 0x11, rule)
    with table.load(socket_program(OWN_TARGET, others=True)) as program:
        assert filtered(program, roce(address, 0x11)) == FILTER_RULES[rule]
        assert filtered(program, roce(address, 0x12)) == NOTHING  # no rule: the host's


@pytest.mark.parametrize(("others", "expected"), [(True, WHOLE_FRAME), (False, NOTHING)])
def test_socket_filter_and_what_is_not_roce(table: RuleTable, others: bool, expected: int) -> None:
    with table.load(socket_program(OWN_TARGET, others=others)) as program:
        for frame in OTHER_FRAMES.values():
            assert filtered(program, frame) == expected


def test_socket_filter_does_not_count(table: RuleTable) -> None:
    """tc sees the same frame next, and counts it."""
    table.add(None, None, Rule.keep())
    with table.load(socket_program(0, others=True)) as program:
        filtered(program, roce())
    assert all(count.packets == 0 for count in table.counters().values())
    assert table.entry(None, None).count.packets == 0


# --- anything at all ---------------------------------------------------------------------------------------

SEEDS = [*ROCE_FRAMES.values(), *OTHER_FRAMES.values()]
MODEL_RULES = {(ip_address(DST4), 0x11), (ip_address(DST6), 0x11), (ip_address(DST4), None)}


@st.composite
def hostile_frames(draw: st.DrawFn) -> bytes:
    """A good frame with a few bytes changed, then cut."""
    frame = bytearray(draw(st.sampled_from(SEEDS)))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4)):
        if at < len(frame):
            frame[at] = value
    return bytes(frame[: draw(st.integers(14, len(frame)))])


@pytest.mark.parametrize("vlan", [False, True])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_hostile_frames_are_judged_as_by_the_model(table: RuleTable, hook: str, vlan: bool) -> None:
    for address, qpn in MODEL_RULES:
        table.add(address, qpn, Rule.drop())
    bench = bench_at(table, hook, vlan=vlan)

    @settings(max_examples=500)
    @given(frame=st.one_of(hostile_frames(), st.binary(min_size=14, max_size=120)))
    def check(frame: bytes) -> None:
        assume(len(frame) >= shortest_testable(frame, bench))
        before = table.counters()
        verdict = bench.verdict(frame)
        after = table.counters()
        expected = model.judge(frame, MODEL_RULES, vlan=vlan)
        assert verdict == (bench.gone if expected.rule else bench.host)
        counted = {each for each in Counter if after[each].packets > before[each].packets}
        assert counted == {
            *({Counter.DROP} if expected.rule else set()),
            *({Counter.NO_RULE} if expected.roce and not expected.rule else set()),
            *({Counter.NO_BTH} if expected.roce and not expected.bth else set()),
        }

    with bench.program:
        check()
