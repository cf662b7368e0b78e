"""The slow and obvious splitter: scapy takes the super-frame apart and puts the packets together."""

from __future__ import annotations

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw


def split(frame: bytes, seg: int) -> list[bytes]:
    """Each packet with its own lengths, IP id + i, IPv4 checksum; UDP checksum 0 over IPv4, computed over IPv6."""
    whole = Ether(frame)
    if UDP not in whole:
        return [frame]
    payload = bytes(whole[UDP].payload)
    if seg == 0 or len(payload) <= seg:
        return [frame]
    packets = []
    for i, start in enumerate(range(0, len(payload), seg)):
        packet = whole.copy()
        packet[UDP].remove_payload()
        packet[UDP].add_payload(Raw(payload[start : start + seg]))
        packet[UDP].len = None
        if IP in packet:
            packet[IP].len = packet[IP].chksum = None
            packet[IP].id = (whole[IP].id + i) % 65536
            packet[UDP].chksum = 0
        else:
            packet[IPv6].plen = packet[UDP].chksum = None
        packets.append(bytes(packet))
    return packets
