"""Captures that scapy made."""

from __future__ import annotations

from pathlib import Path

from scapy.contrib.roce import BTH
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter


def send(psn: int, payload: bytes = b"abcd", *, qpn: int = 0x11) -> Packet:
    """An RC SEND Only with a right ICRC."""
    ip = IP(src="10.0.0.1", dst="10.0.0.2", flags="DF", id=0)
    return (
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / ip
        / UDP(sport=49152, dport=4791, chksum=0)
        / BTH(opcode="RC_SEND_ONLY", dqpn=qpn, psn=psn, pkey=0xFFFF)
        / Raw(payload)
    )


def many(count: int) -> list[bytes]:
    """SENDs with PSNs from 0 on."""
    template = bytes(send(0))
    return [bytes(send(i)) if i < 10 else template for i in range(count)]


def arp() -> bytes:
    """Somebody else's frame."""
    return bytes(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.0.2"))


def write(path: Path, frames: list[bytes], *, snaplen: int = 65535) -> None:
    """A pcap file, or by its name a pcapng file; frames are cut at `snaplen`."""
    writer = PcapNgWriter(str(path)) if path.suffix == ".pcapng" else PcapWriter(str(path), linktype=1)
    writer.write_header(None)
    for i, data in enumerate(frames):
        kept = data[:snaplen]
        writer.write_packet(kept, sec=1_700_000_000 + i, usec=0, caplen=len(kept), wirelen=len(data))
    writer.close()
