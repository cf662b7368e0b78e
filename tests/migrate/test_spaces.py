"""Address spaces in the saved state: slots, regions over ranges and over everything, on-demand ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from softrnic.control.migration.memory import stretches_of
from softrnic.errors import StateError
from softrnic.migrate import restore, save
from softrnic.migrate.envelope import OPTIONAL, PRODUCER, Section, unwrap, wrap
from softrnic.migrate.schema import SECTIONS
from softrnic.verbs import Access, Device, FileMemory, PhysicalMr, SendWr, VerbsError, WrOpcode
from tests.odp.world import World, statuses
from tests.pairs import ALL_ACCESS, IPV4, MAC

GOLDEN = Path(__file__).parent / "golden" / "v1-spaces.bin"
KNOWN = {ident: version for ident, (_, version, _) in SECTIONS.items()}
PAGE = 4096


def with_spaces() -> Device:
    """A device with two address spaces and every kind of region over them."""
    device = Device("golden", node_guid=0x1234)
    device.add_gid(IPV4[0], MAC[0])
    pd, other = device.alloc_pd(), device.alloc_pd()
    guest, paged = device.create_space(), device.create_space(8192, paged=True)
    guest.add_slot(0, bytearray(3 * PAGE))
    guest.add_slot(1 << 32, bytearray(PAGE))
    paged.add_slot(8192, bytearray(4 * 8192))
    pd.reg_physical_mr(guest, 0x7000, [(100, 50), (1 << 32, PAGE), (0, 10)], ALL_ACCESS, key=0x101)
    pd.reg_physical_mr(guest, 0, [(64 * i, 32) for i in range(20)], Access.REMOTE_READ, key=0x202)
    other.reg_all(guest, ALL_ACCESS, key=0x303)
    other.reg_all(paged, ALL_ACCESS, odp=True, key=0x404)
    pd.reg_physical_mr(paged, 0, [(1 << 40, 9)], Access.LOCAL_WRITE, odp=True, key=0x505)
    pd.reg_mr(bytearray(100), ALL_ACCESS | Access.ON_DEMAND, iova=5, key=0x606)
    pd.reg_mr(bytearray(50), Access.LOCAL_WRITE, iova=0, key=0x707)
    return device


def tree(data: bytes) -> dict[int, dict[str, Any]]:
    return {ident: msgspec.msgpack.decode(s.payload) for ident, s in unwrap(data, KNOWN).items()}


def packed(sections: dict[int, dict[str, Any]]) -> bytes:
    return wrap(
        [Section(i, 1, OPTIONAL if SECTIONS[i][2] else 0, msgspec.msgpack.encode(v)) for i, v in sections.items()],
        PRODUCER,
    )


def memory(region: Any) -> bytearray:
    """Bytes for whatever is asked for."""
    return bytearray(region.length)


def test_golden() -> None:
    """Written with address spaces by version 1, read for ever and written the same."""
    golden, device = GOLDEN.read_bytes(), Device("other")
    made = restore(device, golden, memory)
    assert unwrap(save(device), KNOWN) == unwrap(golden, KNOWN)
    assert tree(save(with_spaces())) == tree(golden)
    assert [(s.page_size, s.paged, [(x.addr, x.length) for x in s.slots]) for s in made.spaces] == [
        (4096, False, [(0, 3 * PAGE), (1 << 32, PAGE)]), (8192, True, [(8192, 4 * 8192)]),
    ]  # fmt: skip
    physical = {key: mr for key, mr in made.mrs.items() if isinstance(mr, PhysicalMr)}
    assert physical[0x101].ranges == [(100, 50), (1 << 32, PAGE), (0, 10)]
    assert {key for key, mr in physical.items() if mr.odp} == {0x404, 0x505, 0x606}
    assert {key for key, mr in physical.items() if mr.follows} == {0x303, 0x404}
    assert physical[0x606].space is device.process_space


def test_all_of_this_process_goes_nowhere() -> None:
    device = with_spaces()
    pd = next(iter(device.pds.values()))
    pd.reg_all(device.process_space, Access.LOCAL_WRITE, odp=True)
    for what in (save, stretches_of):
        with pytest.raises(VerbsError, match="all of this process"):
            what(device)


def test_without_spaces_nothing_is_said_of_them() -> None:
    assert set(tree(save(Device("d")))) == {1, 2, 3, 4, 5, 6}


def test_slots_by_name() -> None:
    """As a mapping, like the bytes of regions."""
    data = save(with_spaces())
    names = {"space 0 at 0x0": bytearray(3 * PAGE), "space 0 at 0x100000000": bytearray(PAGE),
             "space 1 at 0x2000": bytearray(4 * 8192), "0x606": bytearray(100), "0x707": bytearray(50)}  # fmt: skip
    made = restore(Device("other"), data, names)
    made.spaces[0].poke(5, b"here")
    assert names["space 0 at 0x0"][5:9] == b"here"
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 3 * PAGE)
    made = restore(Device("file"), data, {**names, "space 0 at 0x0": FileMemory(fd, 3 * PAGE)})
    made.spaces[0].poke(5, b"here")
    assert os.pread(fd, 4, 5) == b"here"
    with pytest.raises(StateError, match=r"slots\[0\].length"):
        restore(Device("short"), data, {**names, "space 0 at 0x0": FileMemory(fd, 2 * PAGE)})
    os.close(fd)
    with pytest.raises(StateError, match=r"slots\[1\].name: no memory"):
        restore(Device("third"), data, {name: b for name, b in names.items() if "1000" not in name})


@pytest.mark.parametrize(
    ("section", "path", "value", "where"),
    [
        (2, ("regions", 0, "space"), 2, r"regions\[0\].space"),
        (2, ("regions", 0, "ranges"), b"123", r"regions\[0\].ranges"),
        (2, ("regions", 0, "ranges"), bytes(16), r"regions\[0\]: range 0, 0 bytes"),
        (2, ("regions", 0, "ranges"), np.array([1 << 50, 5], "<i8").tobytes(), r"regions\[0\]: not all of the 5 bytes"),
        (2, ("regions", 0, "length"), 7, r"regions\[0\].length: 7"),
        (2, ("regions", 2, "iova"), 1, r"regions\[2\].iova"),
        (2, ("regions", 1, "odp"), True, r"regions\[1\]: address space .* has no page table"),
        (7, ("spaces", 0, "page_size"), 4097, r"spaces\[0\]: a page has"),
        (7, ("spaces", 0, "page_size"), 1, "page_size"),
        (7, ("spaces", 0, "slots", 1, "addr"), 5, r"spaces\[0\].slots\[1\]: .* a slot is at"),
        (7, ("spaces", 0, "slots", 0, "length"), 0, "length"),
    ],
)
def test_refused(section: int, path: tuple[Any, ...], value: Any, where: str) -> None:
    """By the path of what is wrong, and the device is empty afterwards."""
    sections = tree(save(with_spaces()))
    place: Any = sections[section]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    device = Device("other")
    with pytest.raises(StateError, match=where):
        restore(device, packed(sections), memory)
    assert device.spaces == []
    restore(device, save(with_spaces()), memory)


def test_moved_in_mid_message() -> None:
    """The responder of a WRITE into pages of an address space moves, while one of them is missing."""
    w = World()
    data = w.random(3)
    mr = w.region([(8192 * i, 4096) for i in range(20)])
    qp, _ = w.connect()
    w.space.resolve(w.slot.addr, 5 * 8192)
    qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [w.a.mr.sge(0, 60_000)], 1, remote_addr=mr.iova, rkey=mr.rkey))
    w.space.resolver = w.faults.append
    for _ in range(20):
        w.round()
    assert w.faults
    old = w.b.device
    old.suspend()
    while not old.settled:
        n = old.engine.transmit(w.b.tx, w.now)
        w.a.device.engine.receive(w.b.tx, n, w.now)
    w.b.device = Device(old.name)
    moved = w.ram.copy()
    made = restore(w.b.device, save(old), lambda r: moved if "space" in r.name else bytearray(r.length))
    old.close()
    w.b.device.resume()
    w.play(budget=100_000)
    assert statuses(w.poll()) == ["SUCCESS"]
    assert made.spaces[0].paged
    got = np.concatenate([moved[8192 * i : 8192 * i + 4096] for i in range(20)])
    assert (got[:60_000] == data[:60_000]).all()
