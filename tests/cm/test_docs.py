"""docs/cm.md has the transition table as it is. To bring it up to date: python -m tests.cm.test_docs"""

from __future__ import annotations

from pathlib import Path

from softrnic.cm.machine import EDGES, TIMERS, Edge, Notice, Reply, State, Timer

PAGE = Path(__file__).resolve().parents[2] / "docs/cm.md"
BEGIN = "<!-- the table -->\n"


def cell(member: Reply | Notice | Timer) -> str:
    return "" if member.name == "NONE" else member.name


def table() -> str:
    lines = ["| state | waits for | input | sends | next state | tells |", "|---|---|---|---|---|---|"]
    for state, edges in EDGES.items():
        shown, waits = state.name, cell(TIMERS[state])
        for event, edge in edges.items():
            if edge == Edge(state):
                continue
            onward = "" if edge.state is state else edge.state.name
            lines.append(f"| {shown} | {waits} | {event.name} | {cell(edge.reply)} | {onward} | {cell(edge.notice)} |")
            shown = waits = ""
    return "\n".join(lines) + "\n"


def test_the_table_is_that_of_the_machine() -> None:
    _, _, block = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert block == table()


def test_every_state_is_explained_by_its_row() -> None:
    """LISTEN has no edges, and all that happens to a conversation that is CLOSED changes nothing."""
    rows = {line.split("|")[1].strip() for line in table().splitlines()[2:]} - {""}
    assert rows == {state.name for state in State} - {"LISTEN", "CLOSED"}


if __name__ == "__main__":
    text, _, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(text + BEGIN + table(), encoding="utf-8")
