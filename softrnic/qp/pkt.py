"""A received packet in flight between the files of this folder: plain numbers, already checked for form."""

from __future__ import annotations

from typing import NamedTuple


class Pkt(NamedTuple):
    """One RoCEv2 packet: header fields and where its parts lie in the slab."""

    opcode: int  # whole BTH opcode
    flags: int  # OpFlag bits
    psn: int
    ackreq: int
    se: int
    ext: int  # offset of the first extension header
    payload: int  # offset of the payload
    length: int  # payload bytes without padding
    l3_off: int
    is_v6: int
