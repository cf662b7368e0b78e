"""The matrix: what was tried between softrnic and a peer, and how it went. As JSON, as text, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

BEGIN, END = "<!-- matrix: written by tools/interop -->", "<!-- end of matrix -->"
ROLES = {"": "outcome", "serve": "softrnic serves", "call": "softrnic calls"}


class Outcome(StrEnum):
    """As in the matrix of quic-interop-runner."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNSUPPORTED = "UNSUPPORTED"


SHORT = {Outcome.SUCCEEDED: "yes", Outcome.FAILED: "**no**", Outcome.UNSUPPORTED: "n/a"}


@dataclass(frozen=True)
class Row:
    """One case."""

    section: str
    case: str
    role: str
    """softrnic's, where there are two: "serve" or "call"."""
    outcome: Outcome
    reason: str
    """Why it failed, or is not supported."""
    seconds: float
    packets: int
    """RoCEv2 packets in its captures."""


@dataclass
class Matrix:
    """All cases of a run. `peer` says what was on the other side."""

    peer: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def emit(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `emit` has made."""
        data = json.loads(text)
        rows = [Row(**{**row, "outcome": Outcome(row["outcome"])}) for row in data["rows"]]
        return cls(data["peer"], rows)

    def count(self, outcome: Outcome) -> int:
        return sum(row.outcome is outcome for row in self.rows)

    @property
    def summary(self) -> str:
        counts = ", ".join(f"{self.count(outcome)} {outcome.value}" for outcome in Outcome)
        packets, seconds = (sum(getattr(row, name) for row in self.rows) for name in ("packets", "seconds"))
        return f"{len(self.rows)} cases: {counts}; {packets} packets judged; {seconds:.0f} s"

    def text(self) -> str:
        """For a terminal: a line per case."""
        width = max((len(f"{row.section}: {row.case}") for row in self.rows), default=0)
        lines = [
            f"{f'{row.section}: {row.case}':{width}}  {row.role:5}  {row.outcome.value:11}  {row.reason}".rstrip()
            for row in self.rows
        ]
        return "\n".join([*lines, self.summary])

    def markdown(self) -> str:
        """A table per section, and the reasons below."""
        blocks = [", ".join(f"{name} {version}" for name, version in self.peer.items()), self.summary]
        for section in dict.fromkeys(row.section for row in self.rows):
            blocks.append(_table(section, [row for row in self.rows if row.section == section]))
        reasons = dict.fromkeys(
            f"* {row.section}, {row.case}: {row.outcome.value}: {row.reason}" for row in self.rows if row.reason
        )
        return "\n\n".join([*blocks, "\n".join(reasons)] if reasons else blocks)


def _table(section: str, rows: Sequence[Row]) -> str:
    roles = [role for role in ROLES if any(row.role == role for row in rows)]
    cells = {(row.case, row.role): SHORT[row.outcome] for row in rows}
    lines = [_line([section, *(ROLES[role] for role in roles)]), _line(["---"] * (1 + len(roles)))]
    for case in dict.fromkeys(row.case for row in rows):
        lines.append(_line([case, *(cells.get((case, role), "") for role in roles)]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_into(document: Path, matrix: Matrix) -> None:
    """Replace the matrix in a Markdown file, between its two comments."""
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no place for a matrix")
    document.write_text(f"{before}{BEGIN}\n{matrix.markdown()}\n{END}{after}", encoding="utf-8")
