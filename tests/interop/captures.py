"""What was on the wire, judged packet by packet: by our own dissector, and by tshark's."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from netio.pcap import Direction, read_packets
from softrnic.wire.show import dissect, one_line

SHOWN = 10
# What tshark tries on the payload of a SEND, by its first bytes, where nothing says that it is that protocol.
GUESSES = (
    *("rpcordma", "iser", "nvme-rdma", "smb_direct", "lnet", "smc", "infiniband_sdp"),
    *("infiniband.eoib", "fcoib", "drbd"),
)


class BadCaptureError(AssertionError):
    """Packets that no NIC should send; they are listed."""


def check(path: Path) -> int:
    """The number of RoCEv2 packets in a capture, all of them well formed and with a right ICRC."""
    count, complaints = 0, []
    with path.open("rb") as file:
        for number, packet in enumerate(read_packets(file), start=1):
            layers = dissect(packet.data)
            fields = {field.name: field for layer in layers for field in layer.fields}
            roce = "infiniband.bth.opcode" in fields
            count += roce
            icrc = fields.get("infiniband.invariant.crc")
            if "_ws.malformed" in fields or (roce and (icrc is None or icrc.note != "correct")):
                complaints.append(f"{number} {Direction(packet.direction).name} {one_line(packet.data)}")
    complaints += [f"tshark: {line}" for line in malformed_by_tshark(path)]
    if complaints:
        more = [f"and {len(complaints) - SHOWN} more"] if len(complaints) > SHOWN else []
        raise BadCaptureError("\n".join([f"{path}:", *complaints[:SHOWN], *more]))
    return count


@functools.cache
def tshark() -> str | None:
    """Its path, if there is one."""
    return shutil.which("tshark")


def malformed_by_tshark(path: Path) -> list[str]:
    """The packets that tshark calls malformed; none where there is no tshark."""
    program = tshark()
    if program is None:
        return []
    command = [program, "-n", "-r", str(path), "-Y", "_ws.malformed"]
    command += ["-o", "infiniband.identify_payload:FALSE"]  # or payload that begins with 81 00 is a VLAN tag to it
    for protocol in GUESSES:
        command += ["--disable-protocol", protocol]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
