"""The layout of every CM message, against the specification's offsets and byte for byte."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.cm import mad
from softrnic.cm.bits import Record
from softrnic.cm.mad import Attr, Mad
from softrnic.cm.messages import (
    LAP_PATH,
    NO_PATH,
    PATH,
    PERMISSIVE_LID,
    RECORDS,
    Path,
    Reason,
    Rej,
    Rep,
    Req,
    Subject,
    Transport,
    decode,
    encode,
    private_data_room,
)
from softrnic.errors import VerbsError, WireError

# IBTA tables 106 to 120 as (byte, bit, width): the byte after the MAD header, and the bit counted from the most
# significant one. Written down independently of messages.py, which has the fields in sequence.
IDS = {"local_comm_id": (0, 0, 32), "remote_comm_id": (4, 0, 32)}
PATH_AT_52 = {
    "local_lid": (52, 0, 16),
    "remote_lid": (54, 0, 16),
    "local_gid": (56, 0, 128),
    "remote_gid": (72, 0, 128),
    "flow_label": (88, 0, 20),
    "packet_rate": (91, 2, 6),
    "traffic_class": (92, 0, 8),
    "hop_limit": (93, 0, 8),
    "sl": (94, 0, 4),
    "subnet_local": (94, 4, 1),
    "local_ack_timeout": (95, 0, 5),
}
LAP_PATH_AT_20 = {
    "local_lid": (20, 0, 16),
    "remote_lid": (22, 0, 16),
    "local_gid": (24, 0, 128),
    "remote_gid": (40, 0, 128),
    "flow_label": (56, 0, 20),
    "traffic_class": (59, 0, 8),
    "hop_limit": (60, 0, 8),
    "packet_rate": (61, 2, 6),
    "sl": (62, 0, 4),
    "subnet_local": (62, 4, 1),
    "local_ack_timeout": (63, 0, 5),
}
TABLES: dict[Attr, dict[str, tuple[int, int, int]]] = {
    Attr.REQ: {
        "local_comm_id": (0, 0, 32),
        "service_id": (8, 0, 64),
        "local_ca_guid": (16, 0, 64),
        "local_qkey": (28, 0, 32),
        "local_qpn": (32, 0, 24),
        "responder_resources": (35, 0, 8),
        "local_eecn": (36, 0, 24),
        "initiator_depth": (39, 0, 8),
        "remote_eecn": (40, 0, 24),
        "remote_cm_response_timeout": (43, 0, 5),
        "transport": (43, 5, 2),
        "flow_control": (43, 7, 1),
        "starting_psn": (44, 0, 24),
        "local_cm_response_timeout": (47, 0, 5),
        "retry_count": (47, 5, 3),
        "pkey": (48, 0, 16),
        "path_mtu": (50, 0, 4),
        "rdc_exists": (50, 4, 1),
        "rnr_retry_count": (50, 5, 3),
        "max_cm_retries": (51, 0, 4),
        "srq": (51, 4, 1),
        "extended_transport": (51, 5, 3),
        "primary": (52, 0, 349),
        "alternate": (96, 0, 349),
        "sap_supported": (139, 5, 1),
        "private_data": (140, 0, 736),
    },
    Attr.MRA: {
        **IDS,
        "message_mraed": (8, 0, 2),
        "service_timeout": (9, 0, 5),
        "private_data": (10, 0, 1776),
    },
    Attr.REJ: {
        **IDS,
        "message_rejected": (8, 0, 2),
        "ari_length": (9, 0, 7),
        "reason": (10, 0, 16),
        "ari": (12, 0, 576),
        "private_data": (84, 0, 1184),
    },
    Attr.REP: {
        **IDS,
        "local_qkey": (8, 0, 32),
        "local_qpn": (12, 0, 24),
        "local_eecn": (16, 0, 24),
        "starting_psn": (20, 0, 24),
        "responder_resources": (24, 0, 8),
        "initiator_depth": (25, 0, 8),
        "target_ack_delay": (26, 0, 5),
        "failover_accepted": (26, 5, 2),
        "flow_control": (26, 7, 1),
        "rnr_retry_count": (27, 0, 3),
        "srq": (27, 3, 1),
        "local_ca_guid": (28, 0, 64),
        "private_data": (36, 0, 1568),
    },
    Attr.RTU: {**IDS, "private_data": (8, 0, 1792)},
    Attr.DREQ: {**IDS, "remote_qpn": (8, 0, 24), "private_data": (12, 0, 1760)},
    Attr.DREP: {**IDS, "private_data": (8, 0, 1792)},
    Attr.LAP: {
        **IDS,
        "remote_qpn": (12, 0, 24),
        "remote_cm_response_timeout": (15, 0, 5),
        "alternate": (20, 0, 349),
        "private_data": (64, 0, 1344),
    },
    Attr.APR: {
        **IDS,
        "information_length": (8, 0, 8),
        "status": (9, 0, 8),
        "information": (12, 0, 576),
        "private_data": (84, 0, 1184),
    },
    Attr.SIDR_REQ: {
        "request_id": (0, 0, 32),
        "pkey": (4, 0, 16),
        "service_id": (8, 0, 64),
        "private_data": (16, 0, 1728),
    },
    Attr.SIDR_REP: {
        "request_id": (0, 0, 32),
        "status": (4, 0, 8),
        "information_length": (5, 0, 8),
        "qpn": (8, 0, 24),
        "service_id": (12, 0, 64),
        "qkey": (20, 0, 32),
        "information": (24, 0, 576),
        "private_data": (96, 0, 1088),
    },
}


@pytest.mark.parametrize("attr", Attr, ids=lambda attr: attr.name)
def test_fields_lie_where_the_specification_says(attr: Attr) -> None:
    record = RECORDS[attr]
    assert record.bits == 8 * mad.DATA_BYTES
    assert record.layout() == {name: (8 * byte + bit, width) for name, (byte, bit, width) in TABLES[attr].items()}


@pytest.mark.parametrize(("record", "table", "base"), [(PATH, PATH_AT_52, 52), (LAP_PATH, LAP_PATH_AT_20, 20)])
def test_paths_lie_where_the_specification_says(record: Record[Path], table: dict[str, Any], base: int) -> None:
    expected = {name: (8 * (byte - base) + bit, width) for name, (byte, bit, width) in table.items()}
    assert record.layout() == expected


@pytest.mark.parametrize("record", [*RECORDS.values(), PATH, LAP_PATH], ids=lambda record: record.cls.__name__)
def test_a_record_has_exactly_the_fields_of_its_class(record: Record[Any]) -> None:
    assert {field.name for field in record.fields} == set(record.cls.__struct_fields__)


def room_of(attr: Attr) -> int:
    return private_data_room(RECORDS[attr].cls)


def test_private_data_sizes() -> None:
    """As rdma_cm documents them: IB_CM_*_PRIVATE_DATA_SIZE."""
    assert {attr.name: room_of(attr) for attr in Attr} == {
        "REQ": 92, "MRA": 222, "REJ": 148, "REP": 196, "RTU": 224, "DREQ": 220, "DREP": 224,
        "SIDR_REQ": 216, "SIDR_REP": 136, "LAP": 168, "APR": 148,
    }  # fmt: skip


GID_A = ipaddress.ip_address("::ffff:192.0.2.1").packed
GID_B = ipaddress.ip_address("::ffff:192.0.2.2").packed


def test_req_byte_for_byte() -> None:
    request = Req(
        local_comm_id=0xA1B2C3D4,
        service_id=0x01061C06,
        local_ca_guid=0x0011223344556677,
        local_qpn=0x000012,
        responder_resources=4,
        initiator_depth=3,
        remote_cm_response_timeout=20,
        transport=Transport.UC,
        flow_control=1,
        starting_psn=0xABCDEF,
        local_cm_response_timeout=21,
        retry_count=5,
        path_mtu=3,
        rnr_retry_count=6,
        max_cm_retries=15,
        srq=1,
        primary=Path(
            local_gid=GID_A, remote_gid=GID_B, flow_label=0x12345, packet_rate=2, traffic_class=0x68,
            hop_limit=64, sl=3, local_ack_timeout=19,
        ),
        private_data=b"hello",
    )  # fmt: skip
    expected = b"".join(
        (
            struct.pack(">II", 0xA1B2C3D4, 0),
            struct.pack(">QQ", 0x01061C06, 0x0011223344556677),
            struct.pack(">II", 0, 0),  # reserved, local Q_Key
            struct.pack(">I", 0x12 << 8 | 4),
            struct.pack(">I", 3),  # no EE context
            struct.pack(">I", 20 << 3 | 1 << 1 | 1),
            struct.pack(">I", 0xABCDEF << 8 | 21 << 3 | 5),
            struct.pack(">HBB", 0xFFFF, 3 << 4 | 6, 15 << 4 | 1 << 3),
            struct.pack(">HH", 0xFFFF, 0xFFFF) + GID_A + GID_B,
            struct.pack(">IBB", 0x12345 << 12 | 2, 0x68, 64),
            struct.pack(">BB", 3 << 4, 19 << 3),
            bytes(44),  # no alternate path
            b"hello".ljust(92, b"\0"),
        )
    )
    assert encode(request, 7) == Mad(Attr.REQ, 7, expected)
    assert decode(Mad(Attr.REQ, 7, expected)) == msgspec.structs.replace(
        request, private_data=b"hello".ljust(92, b"\0")
    )


def test_rep_byte_for_byte() -> None:
    reply = Rep(
        local_comm_id=1,
        remote_comm_id=2,
        local_qkey=0x11111111,
        local_qpn=0x123456,
        starting_psn=0x654321,
        responder_resources=16,
        initiator_depth=8,
        target_ack_delay=9,
        failover_accepted=2,
        flow_control=1,
        rnr_retry_count=7,
        srq=1,
        local_ca_guid=0x8899AABBCCDDEEFF,
        private_data=b"x" * 196,
    )
    expected = (
        struct.pack(">IIIIII", 1, 2, 0x11111111, 0x123456 << 8, 0, 0x654321 << 8)
        + bytes((16, 8, 9 << 3 | 2 << 1 | 1, 7 << 5 | 1 << 4))
        + struct.pack(">Q", 0x8899AABBCCDDEEFF)
        + b"x" * 196
    )
    assert encode(reply, 0).data == expected
    assert decode(Mad(Attr.REP, 0, expected)) == reply


def test_rej_byte_for_byte() -> None:
    rejection = Rej(
        local_comm_id=0,
        remote_comm_id=2,
        message_rejected=Subject.REP,
        reason=Reason.INVALID_MTU,
        ari_length=1,
        ari=b"\x03",
    )
    expected = struct.pack(">IIBBH", 0, 2, 1 << 6, 1 << 1, 26) + b"\x03".ljust(72 + 148, b"\0")
    assert encode(rejection, 0).data == expected
    parsed = decode(Mad(Attr.REJ, 0, expected))
    assert isinstance(parsed, Rej)
    assert parsed.information == b"\x03"


def test_an_information_length_beyond_the_field_is_harmless() -> None:
    assert len(Rej(message_rejected=0, reason=0, ari_length=127, ari=bytes(72)).information) == 72


def test_a_routed_path_has_no_lids() -> None:
    assert (Path().local_lid, Path().remote_lid) == (PERMISSIVE_LID, PERMISSIVE_LID)
    assert PATH.to_int(NO_PATH) == 0


@pytest.mark.parametrize("attr", Attr, ids=lambda attr: attr.name)
def test_too_much_private_data_is_refused(attr: Attr) -> None:
    empty = decode(Mad(attr, 0, bytes(232)))
    full = msgspec.structs.replace(empty, private_data=b"z" * room_of(attr))
    assert encode(full, 0).data.endswith(b"z" * room_of(attr))
    with pytest.raises(VerbsError, match="private_data"):
        encode(msgspec.structs.replace(empty, private_data=bytes(room_of(attr) + 1)), 0)


@pytest.mark.parametrize("attr", Attr, ids=lambda attr: attr.name)
def test_numbers_that_do_not_fit_are_refused(attr: Attr) -> None:
    empty = decode(Mad(attr, 0, bytes(232)))
    for field in RECORDS[attr].fields:
        if field.kind is int:
            encode(msgspec.structs.replace(empty, **{field.name: (1 << field.bits) - 1}), 0)
            for value in (1 << field.bits, -1):
                with pytest.raises(VerbsError, match=field.name):
                    encode(msgspec.structs.replace(empty, **{field.name: value}), 0)


@pytest.mark.parametrize("attr", Attr, ids=lambda attr: attr.name)
@pytest.mark.parametrize("size", [0, 231, 233])
def test_a_message_of_a_wrong_length_is_refused(attr: Attr, size: int) -> None:
    with pytest.raises(WireError):
        decode(Mad(attr, 0, bytes(size)))


@given(st.sampled_from(Attr), st.binary(min_size=232, max_size=232))
def test_every_bit_pattern_parses_and_survives_but_for_reserved_bits(attr: Attr, data: bytes) -> None:
    message = decode(Mad(attr, 1, data))
    again = encode(message, 1)
    assert decode(again) == message
    reserved = ~sum(((1 << width) - 1) << (1856 - at - width) for at, width in RECORDS[attr].layout().values())
    changed = int.from_bytes(data, "big") ^ int.from_bytes(again.data, "big")
    inside_paths = ((1 << 349) - 1) << (1856 - 416 - 349) | ((1 << 349) - 1) << (1856 - 768 - 349)
    if attr is Attr.LAP:
        inside_paths = ((1 << 349) - 1) << (1856 - 160 - 349)
    elif attr is not Attr.REQ:
        inside_paths = 0
    assert changed & ~reserved & ~inside_paths == 0
