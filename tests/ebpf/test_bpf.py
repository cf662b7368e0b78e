"""The system call: what crosses, and how a refusal reads."""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct

import pytest
from pyroute2 import IPRoute

import ebpf.table
from ebpf.attach import XdpMode, attach_xdp
from ebpf.bpf import BpfError, Cmd, Map, MapType, Program, ProgType
from ebpf.program import XDP, steering_program
from ebpf.rules import MAX_QUEUES, Counter, Rule
from ebpf.table import RuleTable
from softrnic.errors import IoError
from tests.ebpf.conftest import Lab
from tests.ebpf.frames import roce

pytestmark = pytest.mark.privileged("bpf")

EXIT_WITHOUT_VERDICT = b"\x95" + bytes(7)
XDP_DROP = 1
AF_XDP = 44


def small_map(entries: int = 4) -> Map:
    return Map(MapType.HASH, "small", key_size=4, value_size=8, max_entries=entries)


def test_map_holds_what_is_put() -> None:
    with small_map() as made:
        made[b"key1"] = b"value--1"
        made[b"key2"] = b"value--2"
        made[b"key1"] = b"replaced"
        assert made[b"key1"] == b"replaced"
        assert sorted(made) == [b"key1", b"key2"]
        del made[b"key1"]
        assert list(made) == [b"key2"]


def test_missing_key() -> None:
    with small_map() as made:
        with pytest.raises(KeyError):
            made[b"none"]
        with pytest.raises(KeyError):
            del made[b"none"]


def test_full_map() -> None:
    with small_map(entries=1) as made:
        made[b"key1"] = bytes(8)
        with pytest.raises(BpfError, match="MAP_UPDATE_ELEM") as refused:
            made[b"key2"] = bytes(8)
        assert refused.value.errno == errno.E2BIG


@pytest.mark.parametrize(("key", "value"), [(b"long key", bytes(8)), (b"key1", bytes(7)), (b"", bytes(8))])
def test_wrong_size(key: bytes, value: bytes) -> None:
    with small_map() as made, pytest.raises(ValueError, match="bytes for a map of"):
        made[key] = value


def test_a_closed_map_is_closed_once() -> None:
    made = small_map()
    fd = made.fileno()
    made.close()
    made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_table_that_cannot_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Map] = []

    def no_socket_maps(kind: MapType, *args: object, **sizes: int) -> Map:
        if kind is MapType.XSKMAP:
            raise BpfError(Cmd.MAP_CREATE, errno.EINVAL)
        made.append(Map(kind, *args, **sizes))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(ebpf.table, "Map", no_socket_maps)
    with pytest.raises(BpfError, match="MAP_CREATE"):
        RuleTable()
    assert [each.fileno() for each in made] == [-1, -1]


def test_descriptors_are_not_inherited() -> None:
    with small_map() as made:
        assert not os.get_inheritable(made.fileno())


def test_a_refused_program_shows_the_verifiers_words() -> None:
    with pytest.raises(BpfError) as refused:
        Program(ProgType.SCHED_CLS, "bad", EXIT_WITHOUT_VERDICT)
    assert isinstance(refused.value, IoError)
    assert refused.value.errno == errno.EACCES
    assert "R0 !read_ok" in refused.value.log
    assert "R0 !read_ok" in str(refused.value)


def test_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(BpfError, match="pdp11") as refused:
        small_map()
    assert refused.value.errno == errno.ENOSYS


@pytest.mark.privileged("netns", "xsk")
def test_a_queue_beyond_the_socket_map(lab: Lab, table: RuleTable) -> None:
    """The slots of one function must not run over into the next one's."""
    table.add(None, None, Rule.to_socket(0))
    next_one = lab.stack.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW))
    table.add_xsk(next_one.fileno(), target=1)
    with lab.host.entered(), table.load(steering_program(XDP)) as program, IPRoute() as ip:
        queues = MAX_QUEUES + 2
        ip.link("add", ifname="many0", kind="veth", peer={"ifname": "many1"},
                num_rx_queues=queues, num_tx_queues=queues)
        index = ip.link_lookup(ifname="many0")[0]
        ip.link("set", index=index, state="up")
        attachment = attach_xdp(program, index, XdpMode.NATIVE)
        frame = roce()
        context = struct.pack("=6I", 0, len(frame), 0, index, MAX_QUEUES, 0)  # struct xdp_md
        assert program.test_run(frame, context).retval == XDP_DROP
        attachment.close()
    assert table.counters()[Counter.NO_SOCKET].packets == 1
