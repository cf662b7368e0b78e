"""Shields, socket filters and forwarding on real interfaces, and that nothing of them stays behind.

What must not arrive is followed by something that must, so that no test waits for nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest

import ebpf.attach
from ebpf.bpf import BpfError, Cmd, Fd
from ebpf.clsact import ClsactAttachment
from ebpf.program import XDP, steering_program
from ebpf.rules import Count, Counter, Rule, mac_bytes
from ebpf.shield import HostShield, shield
from ebpf.steering import Mode, Steering
from ebpf.table import RuleTable
from softrnic.errors import IoError
from tests.ebpf.conftest import ETH_P_IP, Lab
from tests.ebpf.frames import DST4, DST6, ROCE, VNET_BYTES, qpn_of, roce, super_frame, udp, vnet_header

pytestmark = pytest.mark.privileged("netns", "bpf")

MARKER = b"to a closed port"
TOKEN = b"not for the host"
HOST_MAC, FAR_MAC = "02:00:00:00:01:02", "02:00:00:00:00:03"
INGRESS = 0xFFFFFFF2


def marker(address: str = DST4) -> bytes:
    """A datagram to a port where nobody listens: what the host says to it quotes the payload."""
    return udp(address, port=9, payload=MARKER)


def host_answers(lab: Lab, frame: bytes, *, address: str, token: bytes = TOKEN) -> bool:
    """Whether the host answers the frame with an ICMP error, which quotes the token."""
    wire, answers = lab.packets("a0", vnet=True), lab.packets("a0")
    wire.send(frame)
    wire.send(vnet_header() + marker(address))
    return any(token in answer for answer in answers.until(MARKER)[:-1])


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel before 6.6, whose tc has no links."""

    def link(*args: object) -> Fd:
        raise BpfError(Cmd.LINK_CREATE, errno.EINVAL)

    monkeypatch.setattr(ebpf.attach, "link", link)


# --- the shield

SHIELDS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "tcx link": lambda: shield("b0"),
    "tc cls_bpf": lambda: shield("b0"),
    "UDP socket": HostShield,
}


@pytest.fixture(params=SHIELDS)
def shielded(request: pytest.FixtureRequest, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> str:
    """The host behind one kind of shield."""
    if request.param == "tc cls_bpf":
        without_links(monkeypatch)
    with lab.host.entered():
        made = SHIELDS[request.param]()
    lab.stack.enter_context(made)
    assert request.param in made.how
    return request.param


@pytest.mark.parametrize("address", [DST4, DST6])
@pytest.mark.parametrize("vlan", [None, 0])
def test_without_a_shield_the_host_answers(lab: Lab, address: str, vlan: int | None) -> None:
    assert host_answers(lab, vnet_header() + roce(address, payload=TOKEN * 2, vlan=vlan), address=address)


@pytest.mark.parametrize("address", [DST4, DST6])
@pytest.mark.parametrize("vlan", [None, 0])
def test_a_shielded_host_does_not_answer(lab: Lab, shielded: str, address: str, vlan: int | None) -> None:
    """Frames with a priority tag go to the stack as well."""
    assert not host_answers(lab, vnet_header() + roce(address, payload=TOKEN * 2, vlan=vlan), address=address)


@pytest.mark.parametrize("address", [DST4, DST6])
@pytest.mark.parametrize("kind", ["unshielded", "tcx link"])
def test_super_frames(lab: Lab, kind: str, address: str) -> None:
    frame = super_frame(address, 0x11, segments=10, segment=1040)
    with lab.host.entered():
        lab.stack.enter_context(nullcontext() if kind == "unshielded" else shield("b0"))
    port = ROCE.to_bytes(2, "big")
    assert host_answers(lab, frame, address=address, token=port) == (kind == "unshielded")


def test_packet_sockets_see_what_is_shielded(lab: Lab, shielded: str) -> None:
    wire, port = lab.packets("a0", vnet=True), lab.packets("b0", vnet=True)
    frames = [vnet_header() + roce(), super_frame(DST4, 0x11, segments=10, segment=1040)]
    for frame in (*frames, vnet_header() + marker()):
        wire.send(frame)
    received = [frame for frame in port.until(MARKER) if qpn_of(frame[VNET_BYTES:]) == 0x11]
    assert [len(frame) for frame in received] == [len(frame) for frame in frames], "whole, both"


@pytest.mark.parametrize(("means", "sees"), [("tcx link", False), ("UDP socket", True)])
def test_packet_sockets_of_one_protocol_come_after_tc(lab: Lab, means: str, sees: bool) -> None:
    """Only ETH_P_ALL is asked before tc: a port must be bound to that."""
    wire, late = lab.packets("a0"), lab.packets("b0", ETH_P_IP)
    with lab.host.entered():
        lab.stack.enter_context(SHIELDS[means]())
    wire.send(roce(payload=TOKEN))
    wire.send(marker())
    assert any(TOKEN in frame for frame in late.until(MARKER)) == sees


def test_tagged_frames_pass_a_shield(lab: Lab) -> None:
    """They belong to a VLAN interface on top, if there is one."""
    wire = lab.packets("a0")
    with lab.host.entered():
        for vlan, dropped in ((False, 0), (True, 1)):
            with Steering("b0", default=Rule.keep(), vlan=vlan) as steering:
                answers = lab.packets("a0")
                wire.send(roce(vlan=5))
                wire.send(marker())
                answers.until(MARKER)
                assert steering.counters()[Counter.KEEP].packets == dropped


def test_without_privilege_the_shield_is_a_socket(lab: Lab) -> None:
    with lab.host.entered():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            with shield("b0") as made:
                os.write(write, made.how.encode())
            os._exit(0)
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(read) as said:
            assert "UDP socket (bpf MAP_CREATE: Operation not permitted)" in said.read()


def test_without_privilege_and_port_there_is_nothing_to_shield(lab: Lab) -> None:
    """Whoever holds the port keeps the host from answering."""
    with lab.host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind(("", ROCE))
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            with shield("b0") as made:
                os._exit(0 if "another program" in made.how else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert not host_answers(lab, vnet_header() + roce(payload=TOKEN * 2), address=DST4)


def test_host_shields_share_the_port(lab: Lab) -> None:
    with lab.host.entered(), HostShield(), HostShield():
        assert not host_answers(lab, vnet_header() + roce(payload=TOKEN * 2), address=DST4)


def test_a_taken_port_is_an_error(lab: Lab) -> None:
    with lab.host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind(("", ROCE))
        with pytest.raises(IoError, match="4791") as refused:
            HostShield()
        assert refused.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("open_it", [shield, Steering, lambda name: Steering(name, "xdp")])
def test_no_such_interface(lab: Lab, open_it: Callable[[str], object]) -> None:
    with lab.host.entered(), pytest.raises(IoError, match="nosuch") as refused:
        open_it("nosuch")
    assert refused.value.errno == errno.ENODEV


# --- sockets of several functions on one interface


@pytest.mark.parametrize("address", [DST4, DST6])
def test_each_packet_socket_has_its_functions_packets(lab: Lab, address: str) -> None:
    wire, first, second = (lab.packets(ifname, vnet=True) for ifname in ("a0", "b0", "b0"))
    with lab.host.entered():
        steering = lab.stack.enter_context(Steering("b0"))
    for function, port in enumerate((first, second)):
        steering.filter_socket(port.sock, function)
    steering.add(address, 1, Rule.keep())
    steering.add(address, 0x10, Rule.to_socket(0))
    steering.add(address, 0x11, Rule.to_socket(1))
    steering.add(address, 0x12, Rule.drop())
    for qpn in (0x10, 0x11, 0x12, 0x13, 1):
        wire.send(vnet_header() + roce(address, qpn))
        wire.send(super_frame(address, qpn, segments=10, segment=1040))
    wire.send(vnet_header() + marker(address))
    for port, own in ((first, 0x10), (second, 0x11)):
        qpns = [qpn_of(frame[VNET_BYTES:]) for frame in port.until(MARKER)]
        assert [qpn for qpn in qpns if qpn is not None] == [own, own, 1, 1]
    assert steering.entry(address, 0x12).count.packets == 11
    assert steering.counters()[Counter.NO_RULE].packets == 11


def test_a_packet_socket_without_others(lab: Lab) -> None:
    wire, port = lab.packets("a0"), lab.packets("b0")
    with lab.host.entered(), Steering("b0", default=Rule.to_socket(0)) as steering:
        steering.filter_socket(port.sock, 0, others=False)
        wire.send(marker())
        wire.send(roce(payload=TOKEN))
        assert not any(MARKER in frame for frame in port.until(TOKEN))


@pytest.mark.parametrize("mode", [Mode.XDP_NATIVE, Mode.XDP_GENERIC])
def test_what_fits_only_one_mode(lab: Lab, mode: Mode) -> None:
    port = lab.packets("b0")
    with lab.host.entered():
        with Steering("b0", mode) as steering:
            with pytest.raises(ValueError, match="mode tc"):
                steering.add(DST4, None, Rule.keep())
            with pytest.raises(ValueError, match="mode tc"):
                steering.filter_socket(port.sock)
        with Steering("b0", Mode.TC) as steering, pytest.raises(ValueError, match="xdp mode"):
            steering.add_xsk(port.sock.fileno())


# --- forwarding


@pytest.mark.parametrize("mode", [Mode.TC, Mode.XDP_NATIVE, Mode.XDP_GENERIC])
@pytest.mark.parametrize("address", [DST4, DST6])
def test_a_moved_queue_pair_is_forwarded(lab: Lab, mode: Mode, address: str) -> None:
    wire, far = lab.packets("a0"), lab.packets("c0")
    with lab.far.entered():
        lab.stack.enter_context(Steering("c0", Mode.XDP))  # gives c0 the ring that native XDP redirects into
    with lab.host.entered():
        steering = lab.stack.enter_context(Steering("b0", mode))
        out = socket.if_nametoindex("b1")
    steering.add(address, 0x11, Rule.forward(out, FAR_MAC, HOST_MAC))
    for qpn in (0x10, 0x11):
        wire.send(roce(address, qpn, payload=TOKEN))
    sent, arrived = roce(address, 0x11, payload=TOKEN), far.until(TOKEN)[-1]
    assert arrived == mac_bytes(FAR_MAC) + mac_bytes(HOST_MAC) + sent[12:]
    assert steering.entry(address, 0x11).count == Count(1, len(sent))
    assert steering.counters()[Counter.FORWARD] == Count(1, len(sent))


@pytest.mark.parametrize("address", [DST4, DST6])
def test_a_super_frame_is_forwarded_whole(lab: Lab, address: str) -> None:
    wire, far = lab.packets("a0", vnet=True), lab.packets("c0", vnet=True)
    with lab.host.entered():
        steering = lab.stack.enter_context(Steering("b0"))
        steering.add(address, 0x11, Rule.forward(socket.if_nametoindex("b1"), FAR_MAC, HOST_MAC))
    frame = super_frame(address, 0x11, segments=10, segment=1040)
    wire.send(frame)
    arrived = far.until(frame[-1040:])[-1]
    assert arrived[VNET_BYTES + 12 :] == frame[VNET_BYTES + 12 :]
    assert steering.counters()[Counter.FORWARD].packets == 10


# --- the end

MEANS = {"tcx link": Mode.TC, "tc cls_bpf": Mode.TC, "xdp native link": Mode.XDP_NATIVE}


def is_in_force(lab: Lab) -> bool:
    return not host_answers(lab, vnet_header() + roce(payload=TOKEN * 2), address=DST4)


def tc_filters(lab: Lab) -> tuple[int, int]:
    """How many queueing disciplines for filters the host's interface has, and how many filters at ingress."""
    with lab.host.netlink() as ip:
        index = ip.link_lookup(ifname="b0")[0]
        disciplines = [each for each in ip.get_qdiscs(index=index) if each.get_attr("TCA_KIND") == "clsact"]
        filters = [each for each in ip.get_filters(index=index, parent=INGRESS) if each["handle"]]
        return len(disciplines), len(filters)


@pytest.mark.parametrize("means", MEANS)
def test_nothing_stays_behind(lab: Lab, means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if means == "tc cls_bpf":
        without_links(monkeypatch)
    with lab.host.entered():
        with Steering("b0", MEANS[means], default=Rule.drop()) as steering:
            assert steering.how == f"{means} on b0"
            assert is_in_force(lab)
            steering.close()
        assert not is_in_force(lab)
        with pytest.raises(ZeroDivisionError), Steering("b0", MEANS[means], default=Rule.drop()):
            raise ZeroDivisionError
    assert not is_in_force(lab)
    assert tc_filters(lab) == (0, 0)


HOLD_FOR_EVER = """
import errno, sys
import ebpf.attach
from ebpf.bpf import BpfError, Cmd
from ebpf.clsact import ClsactAttachment
from ebpf.program import XDP, steering_program
from ebpf.rules import Rule
from ebpf.steering import Steering
from netio.netns import Namespace
def link(*args):
    raise BpfError(Cmd.LINK_CREATE, errno.EINVAL)

fd, mode, means = sys.argv[1:]
if means == "tc cls_bpf":
    ebpf.attach.link = link
with Namespace(int(fd)).entered(), Steering("b0", mode, default=Rule.drop()):
    print("attached", flush=True)
    sys.stdin.read()
"""


def attach_and_kill(lab: Lab, means: str) -> None:
    """Attach in a process of its own, and let that be killed without a chance to detach."""
    fd = lab.host.fd
    command = [sys.executable, "-c", HOLD_FOR_EVER, str(fd), MEANS[means], means]
    with subprocess.Popen(
        command, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"attached\n"
        assert is_in_force(lab)
        holder.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("means", ["tcx link", "xdp native link"])
def test_a_killed_process_leaves_nothing(lab: Lab, means: str) -> None:
    attach_and_kill(lab, means)
    assert not is_in_force(lab)


def test_a_filter_left_by_a_killed_process_is_replaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    attach_and_kill(lab, "tc cls_bpf")
    assert is_in_force(lab)
    without_links(monkeypatch)
    with lab.host.entered(), Steering("b0", default=Rule.to_pass()):
        assert not is_in_force(lab)
        assert tc_filters(lab) == (1, 1)
    assert not is_in_force(lab)
    assert tc_filters(lab)[1] == 0


def test_a_discipline_with_other_filters_is_spared(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch)
    with lab.host.netlink() as ip:
        ip.tc("add", "clsact", ip.link_lookup(ifname="b0")[0])
    with lab.host.entered(), Steering("b0"):
        assert tc_filters(lab) == (1, 1)
    assert tc_filters(lab) == (1, 0)


def test_a_refused_filter_leaves_nothing(lab: Lab) -> None:
    with RuleTable() as table, lab.host.entered():
        xdp_program = table.load(steering_program(XDP))
        with xdp_program, pytest.raises(IoError, match="cls_bpf"):
            ClsactAttachment(xdp_program, socket.if_nametoindex("b0"))
    assert tc_filters(lab) == (0, 0)


def test_one_xdp_program_at_a_time(lab: Lab) -> None:
    with lab.host.entered(), Steering("b0", "xdp"):
        with pytest.raises(IoError) as refused:
            Steering("b0", "xdp")
        assert refused.value.errno == errno.EBUSY


def test_an_interface_may_go_first(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.host.entered():
        by_link = Steering("b0")
        without_links(monkeypatch)
        by_filter = Steering("b0")
        with lab.host.netlink() as ip:
            ip.link("del", index=ip.link_lookup(ifname="b0")[0])
        by_link.close()
        by_filter.close()
