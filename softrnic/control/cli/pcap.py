"""`softrnic pcap`: the packets of a capture, with tshark's field names, and how many of them are wrong.

Not counted as malformed: a packet of which the capture kept only the beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from softrnic.control.cli import COMMANDS

if TYPE_CHECKING:
    from netio.pcap import Packet
    from softrnic.wire.show import Field

Fields = dict[str, "Field"]
_PREFIX = "infiniband."
_COMPARISON = re.compile(r"\s*(!?)\s*([a-z_][\w.]*)\s*(?:(==|!=|<=|>=|<|>)\s*(\S+))?\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """One comparison of a filter: a field is there, is not, or has such a value."""

    field: str
    negated: bool = False
    compare: Callable[[Any, Any], bool] | None = None
    value: int | str = ""

    def holds(self, fields: Fields) -> bool:
        """Of a packet with these fields. A comparison with a field that is not there does not hold."""
        field = fields.get(self.field) or fields.get(_PREFIX + self.field)
        if self.compare is None or field is None:
            return (field is not None) != self.negated
        if isinstance(self.value, int) and isinstance(field.value, (int, bytes)):
            found = int.from_bytes(field.value, "big") if isinstance(field.value, bytes) else field.value
            return self.compare(found, self.value) != self.negated
        return self.compare(field.text, str(self.value)) != self.negated


def condition(text: str) -> Condition:
    """A filter of the command line: FIELD, !FIELD, or FIELD OP VALUE."""
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither FIELD, !FIELD nor FIELD==VALUE (or != < <= > >=)")
    negated, field, compare, value = match.groups()
    with contextlib.suppress(ValueError, TypeError):
        value = int(value, 0)
    return Condition(field, bool(negated), _OPERATORS.get(compare or ""), value or 0)


def add_parser(subparsers: Any) -> None:
    """The options of the command; -n and -V are near to tshark's -c and -V."""
    parser = subparsers.add_parser(
        "pcap",
        help=COMMANDS["pcap"].help,
        description="Dissect the packets of a pcap or pcapng file. Exit status 1 means that some were malformed.",
    )
    parser.add_argument("file", metavar="FILE", help="a capture, or - for standard input")
    parser.add_argument("-n", "--count", type=_positive, metavar="COUNT", help="stop after this many packets")
    parser.add_argument(
        "--filter", type=condition, action="append", default=[], metavar="EXPR", dest="conditions",
        help="only packets with FIELD, without it (!FIELD), or with FIELD==VALUE (or != < <= > >=); may be repeated. "
        "infiniband. may be left out: bth.destqp==0x11",
    )  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-V", "--verbose", action="store_true", help="every field of every layer")
    how.add_argument("--json", action="store_true", help="one JSON object per packet and line")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Show the packets on standard output, and the sums on standard error."""
    from netio.pcap import read_packets

    with _open(args.file) as file:
        return _show(read_packets(file), args)


@contextlib.contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as file:
        yield file


def _show(packets: Iterator[Packet], args: argparse.Namespace) -> int:
    from softrnic.wire.show import dissect

    shown = roce = malformed = bad_icrc = cut = 0
    start: int | None = None
    for number, packet in enumerate(packets, 1):
        start = packet.time_ns if start is None else start
        fields = {field.name: field for layer in dissect(packet.data) for field in layer.fields}
        if not all(condition.holds(fields) for condition in args.conditions):
            continue
        is_cut = len(packet.data) < packet.length
        icrc = fields.get("infiniband.invariant.crc")
        shown += 1
        cut += is_cut
        roce += "infiniband.bth.opcode" in fields
        malformed += "_ws.malformed" in fields and not is_cut
        bad_icrc += icrc is not None and icrc.note != "correct" and not is_cut
        print(_render(number, packet, packet.time_ns - start, fields, args))
        if shown == args.count:
            break
    sys.stdout.flush()
    beginnings = f", {cut} cut short by the capture" if cut else ""
    print(
        f"{shown} packets, {roce} RoCEv2, {malformed} malformed, {bad_icrc} with a wrong ICRC{beginnings}",
        file=sys.stderr,
    )
    return 1 if malformed else 0


def _render(number: int, packet: Packet, since_ns: int, fields: Fields, args: argparse.Namespace) -> str:
    from softrnic.wire.show import one_line, tree

    if args.json:
        seconds, fraction = divmod(packet.time_ns, 1_000_000_000)
        head = {"frame.number": number, "frame.time_epoch": f"{seconds}.{fraction:09}", "frame.len": packet.length}
        return json.dumps(head | {name: field.text for name, field in fields.items()})
    direction = "" if packet.direction.name == "UNKNOWN" else f" {packet.direction.name.lower()}"
    line = f"{number:6} {since_ns / 1e9:12.6f}{direction} {one_line(packet.data)}"
    return f"{line}\n{tree(packet.data)}\n" if args.verbose else line
