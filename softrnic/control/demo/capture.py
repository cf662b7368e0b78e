"""What a capture holds, judged twice: by our dissector, and by tshark where it is installed.

Decides what counts as malformed. Must never know who made the capture.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from netio.pcap import read_packets
from softrnic.errors import IoError
from softrnic.wire.show import dissect

_CORRECT = "correct"


@dataclass(frozen=True)
class Verdict:
    """What one dissector found."""

    dissector: str
    packets: int
    """All in the capture."""
    roce: int
    """RoCEv2 among them."""
    malformed: int
    bad_icrc: int | None
    """None: not checked."""

    @property
    def ok(self) -> bool:
        """There is RoCEv2 in it, and nothing wrong."""
        return self.roce > 0 and self.malformed == 0 and not self.bad_icrc


def judge(path: Path, *, icrc: bool = True) -> Verdict:
    """By softrnic.wire.show. `icrc`: whether the capture has the IP identifications of the wire, which ICRCs cover."""
    packets = roce = malformed = bad_icrc = 0
    with path.open("rb") as file:
        for packet in read_packets(file):
            fields = {field.name: field for layer in dissect(packet.data) for field in layer.fields}
            packets += 1
            roce += "infiniband.bth.opcode" in fields
            malformed += "_ws.malformed" in fields
            crc = fields.get("infiniband.invariant.crc")
            bad_icrc += crc is not None and crc.note != _CORRECT
    return Verdict("softrnic", packets, roce, malformed, bad_icrc if icrc else None)


def judge_with_tshark(path: Path) -> Verdict | None:
    """By tshark, which does not check ICRCs; None if it is not installed."""
    tshark = shutil.which("tshark")
    if tshark is None:
        return None
    command = [tshark, "-n", "-r", str(path), "-T", "fields"]
    for field in ("infiniband.bth.opcode", "_ws.malformed", "frame.protocols"):
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603
    if done.returncode:
        raise IoError(0, f"tshark: {done.stderr.strip()}")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    malformed = sum(bool(malformed) and not _guessed(protocols) for _, malformed, protocols in rows)
    return Verdict("tshark", len(rows), sum(bool(opcode) for opcode, _, _ in rows), malformed, None)


def _guessed(protocols: str) -> bool:
    """Whether tshark went on to take the payload for a protocol that has no number of its own.

    Random bytes now and then look like one, and then a malformed one. "data" and "_ws..." are no protocols.
    """
    inside = protocols.partition(":infiniband")[2].split(":")
    return any(name and name != "data" and not name.startswith("_ws") for name in inside)
