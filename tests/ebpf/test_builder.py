"""The builder by what it produces: instructions that hold on any machine, no kernel needed."""

from __future__ import annotations

import pytest

from ebpf.bpf import ProgType
from ebpf.builder import Builder, relocate
from ebpf.program import TC, XDP, socket_program, steering_program

EXIT = b"\x95" + bytes(7)
LOAD_MAP = 0x18  # BPF_LD | BPF_IMM | BPF_DW
INSTRUCTIONS = 4096  # what a kernel takes without CAP_BPF, and far more than steering may need


def builder() -> Builder:
    return Builder("demo", ProgType.SCHED_CLS)


def test_smallest_program() -> None:
    b = builder()
    b.leave(2)
    assert b.code() == b"\xb7\x00\x00\x00\x02\x00\x00\x00" + EXIT


def test_negative_verdict_is_32_bits() -> None:
    """TC_ACT_UNSPEC is an int in the kernel."""
    b = builder()
    b.leave(-1)
    assert b"\xff\xff\xff\xff" in b.code()


def test_condition() -> None:
    b = builder()
    with b.when(b.context.u32(0) < 64):
        b.leave(2)
    b.leave(0)
    listing = b.listing()
    assert "*(u32 *)(r1 + 0)" in listing
    assert "if r" in listing


def test_big_endian_loads_swap() -> None:
    b = builder()
    b.leave(b.context.be16(2) + b.context.be32(4))
    listing = b.listing()
    assert "be16" in listing
    assert "be32" in listing


def test_maps_are_relocated_in_order() -> None:
    b = builder()
    key = b.buffer(4)
    key.put_u32(0, 0)
    for index in (1, 0):
        with b.when(b.lookup(b.map(index), key).is_null()):
            b.leave(1)
    b.leave(2)
    code = relocate(b.code(), [70, 71])
    loads = [code[at + 4] for at in range(0, len(code), 8) if code[at] == LOAD_MAP]
    assert loads == [71, 70]


def test_misaligned_access_is_refused() -> None:
    b = builder()
    with pytest.raises(ValueError, match="not aligned"):
        b.context.u32(2)
    with pytest.raises(ValueError, match="not aligned"):
        b.buffer(16).put_u64(4, 0)


def test_python_if_on_a_condition_is_an_error() -> None:
    b = builder()
    with pytest.raises(TypeError, match="when"):
        bool(b.context.u32(0) == 1)


@pytest.mark.parametrize("vlan", [False, True])
def test_programs_are_small_and_repeatable(vlan: bool) -> None:
    for make in (
        lambda: steering_program(XDP, vlan=vlan),
        lambda: steering_program(TC, vlan=vlan),
        lambda: socket_program(3, others=True, vlan=vlan),
    ):
        code = make().code()
        assert len(code) % 8 == 0
        assert len(code) // 8 < INSTRUCTIONS
        assert code == make().code()
