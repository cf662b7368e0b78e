"""Every opcode both ways against scapy, and outwards against tshark: things that are not of this project."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from softrnic.wire import frame, headers, show
from softrnic.wire.opcodes import OPCODES, OpFlag
from tests import scapy_roce as sr
from tests.wire.packets import DMAC, FAMILIES, SMAC, V4, V6, VALUES, build, check, make_av, place

RESUME = 0x19  # not of IBTA, and known to neither oracle
KNOWN = [row for row in OPCODES.values() if row.value != RESUME]
ROWS = [pytest.param(row, id=row.name) for row in OPCODES.values()]
PAYLOAD = bytes(range(1, 36))  # needs one byte of padding

# scapy's field of each of our values, by layer.
SCAPY_FIELDS = {
    sr.RETH: {"va": "va", "rkey": "rkey", "dmalen": "length"},
    sr.AETH: {"syndrome": "syndrome", "msn": "msn"},
    sr.AtomicETH: {"va": "va", "rkey": "rkey", "swap": "swap", "compare": "compare"},
    sr.AtomicAckETH: {"orig": "orig"},
    sr.ImmDt: {"imm": "imm"},
    sr.IETH: {"rkey": "inv_rkey"},
    sr.DETH: {"qkey": "qkey", "sqpn": "sqpn"},
    sr.CNPPadding: {},
}


def payload_of(row) -> bytes:
    return PAYLOAD if row.flags & OpFlag.PAYLOAD else b""


@pytest.mark.parametrize("row", ROWS)
def test_the_table_agrees_on_headers(row) -> None:
    layers = sr.extensions(row.value)
    assert sum(len(layer()) for layer in layers) == row.ext_len
    flag_of = {
        sr.RETH: OpFlag.RETH, sr.AETH: OpFlag.AETH, sr.AtomicETH: OpFlag.ATOMICETH, sr.IETH: OpFlag.IETH,
        sr.AtomicAckETH: OpFlag.ATOMICACKETH, sr.ImmDt: OpFlag.IMMDT, sr.DETH: OpFlag.DETH,
        sr.CNPPadding: OpFlag.CNP,
    }  # fmt: skip
    assert row.flags & sum(flag_of.values()) == sum(flag_of[layer] for layer in layers)


def test_the_oracle_knows_the_same_opcodes() -> None:
    assert set(OPCODES) - {RESUME} == set(sr.EXTENSIONS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vlan", [None, 0x6123], ids=["untagged", "vlan"])
@pytest.mark.parametrize("row", ROWS)
def test_scapy_reads_ours(row, family: str, vlan: int | None) -> None:
    payload = payload_of(row)
    data = build(make_av(**FAMILIES[family], vlan=vlan), row.value, payload)
    packet = sr.Ether(data)
    bth = packet[sr.BTH]
    assert (bth.opcode, bth.solicited, bth.migreq, bth.padcount, bth.version) == (
        row.value, VALUES["se"], 1, -len(payload) % 4, 0,
    )  # fmt: skip
    assert (bth.pkey, bth.fecn, bth.becn, bth.resv6, bth.dqpn) == (VALUES["pkey"], 0, 0, 0, VALUES["dqpn"])
    assert (bth.ackreq, bth.resv7, bth.psn) == (VALUES["ackreq"], 0, VALUES["psn"])
    layer = bth.payload
    for kind in sr.extensions(row.value):
        assert type(layer) is kind
        for theirs, ours in SCAPY_FIELDS[kind].items():
            assert getattr(layer, theirs) == VALUES[ours], (kind, theirs)
        layer = layer.payload
    assert bytes(layer) == payload + bytes(-len(payload) % 4)
    assert (sr.Dot1Q in packet) == (vlan is not None)
    # Built again from its fields, with lengths, checksum and ICRC computed by scapy, the frame is the same.
    ip = packet[sr.IP] if family == "v4" else packet[sr.IPv6]
    del bth.icrc, packet[sr.UDP].len
    if family == "v4":
        del ip.len, ip.chksum
    else:
        del ip.plen
    assert bytes(packet) == data


def scapy_packet(row, family: str, payload: bytes, rng: random.Random) -> tuple[bytes, dict[str, int]]:
    """A frame built by scapy of random fields, and those fields."""
    values = {
        "se": rng.getrandbits(1), "pkey": rng.getrandbits(16), "dqpn": rng.getrandbits(24),
        "ackreq": rng.getrandbits(1), "psn": rng.getrandbits(24), "va": rng.getrandbits(64),
        "rkey": rng.getrandbits(32), "length": rng.getrandbits(32), "syndrome": rng.getrandbits(8),
        "msn": rng.getrandbits(24), "swap": rng.getrandbits(64), "compare": rng.getrandbits(64),
        "orig": rng.getrandbits(64), "imm": rng.getrandbits(32), "inv_rkey": rng.getrandbits(32),
        "qkey": rng.getrandbits(32), "sqpn": rng.getrandbits(24),
    }  # fmt: skip
    if family == "v4":
        ip = sr.IP(src="10.0.0.1", dst="10.0.0.2", flags="DF", id=rng.getrandbits(16), tos=rng.getrandbits(8))
    else:
        ip = sr.IPv6(src="fd00::1", dst="fd00::2", tc=rng.getrandbits(8), fl=rng.getrandbits(20))
    packet = sr.Ether(src=SMAC.hex(":"), dst=DMAC.hex(":")) / ip / sr.UDP(sport=0xC001, dport=4791)
    packet /= sr.BTH(
        opcode=row.value, solicited=values["se"], migreq=1, padcount=-len(payload) % 4, pkey=values["pkey"],
        fecn=rng.getrandbits(1), becn=rng.getrandbits(1), dqpn=values["dqpn"], ackreq=values["ackreq"],
        psn=values["psn"],
    )  # fmt: skip
    for kind in sr.extensions(row.value):
        packet /= kind(**{theirs: values[ours] for theirs, ours in SCAPY_FIELDS[kind].items()})
    if payload:
        packet /= sr.Raw(payload + bytes(-len(payload) % 4))
    return bytes(packet), values


def signed(value: int) -> int:
    return value - (value >> 63 << 64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", ROWS)
def test_we_read_scapy(row, family: str) -> None:
    rng = random.Random(row.value)
    for _ in range(5):
        payload = rng.randbytes(rng.choice((1, 2, 3, 4, 100))) if row.flags & OpFlag.PAYLOAD else b""
        data, values = scapy_packet(row, family, payload, rng)
        assert check(data)
        buf = place(data)
        o = frame.parse_link(buf, 5, len(data), 0).bth_off
        h = headers
        assert (h.bth_opcode(buf, o), h.bth_se(buf, o), h.bth_migreq(buf, o)) == (row.value, values["se"], 1)
        assert (h.bth_padcnt(buf, o), h.bth_tver(buf, o)) == (-len(payload) % 4, 0)
        assert (h.bth_pkey(buf, o), h.bth_dqpn(buf, o)) == (values["pkey"], values["dqpn"])
        assert (h.bth_ackreq(buf, o), h.bth_psn(buf, o)) == (values["ackreq"], values["psn"])
        assert h.bth_fecn(buf, o) << 1 | h.bth_becn(buf, o) == data[o - 5 + 4] >> 6
        o += h.BTH_LEN
        if row.flags & OpFlag.DETH:
            assert (h.deth_qkey(buf, o), h.deth_sqpn(buf, o)) == (values["qkey"], values["sqpn"])
            o += h.DETH_LEN
        if row.flags & OpFlag.RETH:
            assert (h.reth_va(buf, o), h.reth_rkey(buf, o)) == (signed(values["va"]), values["rkey"])
            assert h.reth_len(buf, o) == values["length"]
            o += h.RETH_LEN
        if row.flags & OpFlag.ATOMICETH:
            assert h.atomiceth_va(buf, o) == signed(values["va"])
            assert h.atomiceth_rkey(buf, o) == values["rkey"]
            assert h.atomiceth_swap(buf, o) == signed(values["swap"])
            assert h.atomiceth_compare(buf, o) == signed(values["compare"])
            o += h.ATOMICETH_LEN
        if row.flags & OpFlag.AETH:
            assert (h.aeth_syndrome(buf, o), h.aeth_msn(buf, o)) == (values["syndrome"], values["msn"])
            o += h.AETH_LEN
        if row.flags & OpFlag.ATOMICACKETH:
            assert h.atomicacketh_orig(buf, o) == signed(values["orig"])
            o += h.ATOMICACKETH_LEN
        if row.flags & OpFlag.IMMDT:
            assert h.immdt(buf, o) == values["imm"]
            o += h.IMMDT_LEN
        if row.flags & OpFlag.IETH:
            assert h.ieth_rkey(buf, o) == values["inv_rkey"]
            o += h.IETH_LEN
        o += h.CNP_RESV_LEN if row.flags & OpFlag.CNP else 0
        assert buf[o : o + len(payload)].tobytes() == payload
        assert o + len(payload) + -len(payload) % 4 + h.ICRC_LEN == 5 + len(data)


# --- tshark -------------------------------------------------------------------------------------------------


def write_pcap(path: Path, frames: list[bytes]) -> None:
    """A capture of Ethernet frames, one a second (libpcap's classic format)."""
    out = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for i, data in enumerate(frames):
        out += [struct.pack("<IIII", i, 0, len(data), len(data)), data]
    path.write_bytes(b"".join(out))


def tshark(frames: list[bytes], folder: Path) -> list[dict[str, set[str]]]:
    """Every field tshark finds in each frame: name to values, without the colons between bytes."""
    write_pcap(folder / "frames.pcap", frames)
    command = ["tshark", "-r", str(folder / "frames.pcap"), "-T", "json", "-o", "ip.check_checksum:TRUE"]
    run = subprocess.run(command, capture_output=True, check=True, text=True)

    def flatten(pairs: list[tuple[str, object]]) -> dict[str, set[str]]:
        fields: dict[str, set[str]] = defaultdict(set)
        for name, value in pairs:
            if isinstance(value, dict):
                for inner, values in value.items():
                    fields[inner] |= values
            elif isinstance(value, str):
                fields[name].add(value.replace(":", ""))
        return fields

    packets = json.loads(run.stdout, object_pairs_hook=flatten)
    assert len(packets) == len(frames)
    return packets


# The ACK syndromes that tshark tells apart: kind in bits 6:5.
SYNDROMES = (0x00, 0x1F, 0x05, 0x20, 0x2C, 0x3F, 0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x41)


def frames_for_tshark() -> dict[str, bytes]:
    frames = {}
    for name, changes in (("v4", V4), ("v6", V6), ("vlan", V4 | {"vlan": 0x6123})):
        avs = make_av(**changes)
        for row in KNOWN:
            frames[f"{name} {row.name}"] = build(avs, row.value, payload_of(row))
    for syndrome in SYNDROMES:
        frames[f"syndrome {syndrome:#04x}"] = build(make_av(), 0x11, b"", syndrome=syndrome, se=0, ackreq=0)
    return frames


def tshark_prints(name: str, row_name: str) -> bool:
    """Which of the fields we show does tshark 4.0 know in this packet?"""
    if row_name == "CNP":  # it has the CNP at opcode 128, and takes 129 for a vendor's
        return name.startswith("infiniband.bth") or not name.startswith("infiniband")
    if name == "infiniband.payload":
        return False  # called data.data, and with the padding
    return not (name == "infiniband.invariant.crc" and row_name == "RC Atomic Acknowledge")


@pytest.mark.tshark
def test_tshark_reads_ours_as_we_do(tmp_path: Path) -> None:
    frames = frames_for_tshark()
    packets = tshark(list(frames.values()), tmp_path)
    for (label, data), theirs in zip(frames.items(), packets, strict=True):
        ours = [field for layer in show.dissect(data) for field in layer.fields]
        row_name = next(field.note for field in ours if field.name == "infiniband.bth.opcode")
        assert "_ws.malformed" not in theirs, label
        for field in ours:
            if tshark_prints(field.name, row_name):
                assert field.text.replace(":", "") in theirs[field.name], (label, field)
        if payload := next((f for f in ours if f.name == "infiniband.payload"), None):
            assert payload.text + "00" * (-len(payload.value) % 4) in theirs["data.data"], label
        if "ip.checksum.status" in theirs:
            assert theirs["ip.checksum.status"] == {"1"}, label  # good


@pytest.mark.tshark
def test_tshark_names_the_opcodes_alike(tmp_path: Path) -> None:
    rows = [row for row in KNOWN if row.name != "CNP"]
    write_pcap(tmp_path / "frames.pcap", [build(make_av(), row.value, payload_of(row)) for row in rows])
    command = ["tshark", "-r", str(tmp_path / "frames.pcap"), "-T", "fields", "-e", "_ws.col.Info"]
    infos = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    for row, info in zip(rows, infos, strict=True):
        assert info.startswith(row.name), info
        assert f"QP=0x{VALUES['dqpn']:06x}" in info
