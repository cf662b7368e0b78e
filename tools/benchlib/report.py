"""From the parts' results to what people read: tables on the terminal, plots in a folder."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchlib import svg
from benchlib.cases import CASES, Case

Results = dict[str, Any]


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def median(samples: list[float]) -> float:
    """Of one case's repetitions."""
    return statistics.median(samples)


def target_of(case: Case, results: Results) -> float | None:
    """What a case is held against; None where that is a share of a case that was not run."""
    if not case.beside:
        return case.target
    other = results["softrnic"].get(case.beside)
    return case.target * median(other) if other else None


def print_table(out: Console, results: Results) -> None:
    """The target table, with the figures of rxe and of what else was measured in this run."""
    table = _table("one RC QP, one processor per side", "", "median", "min-max", "target", "ratio", "Linux rxe")
    for case in CASES:
        samples = results["softrnic"].get(case.name)
        if not samples:
            continue
        value, target = median(samples), target_of(case, results)
        held = ("-", "-")
        if target is not None:
            held = f"{target:.3g}", f"{target / value if case.lower_is_better else value / target:.2f}"
        spread = f"{min(samples):.2f}-{max(samples):.2f}"
        table.add_row(case.name, f"{value:.2f} {case.unit}", spread, *held, case.rxe)
    out.print(table)
    others = _table("what else carries data over the same wire, in this run", "", "median", "min-max")
    for name, (unit, samples) in results["others"].items():
        if samples:
            others.add_row(name, f"{median(samples):.2f} {unit}", f"{min(samples):.2f}-{max(samples):.2f}")
        else:
            others.add_row(name, "not here", "")
    out.print(others)
    shared = results["one processor"]
    out.print("both ends on one processor: " + ", ".join(f"{k} {v:.2f}" for k, v in shared.items()))


def print_cost(out: Console, results: Results) -> None:
    """ns per packet by stage, per wire."""
    for wire, rows in results.items():
        stages = list(rows[0]["stages"])
        table = _table(f"{wire}: ns per packet, both ends, processor time", "", *stages, "sum", "ns per KiB")
        for row in rows:
            total = sum(row["stages"].values())
            table.add_row(
                row["name"], *(f"{row['stages'][s]:.0f}" for s in stages), f"{total:.0f}",
                f"{total * 1024 / row['payload']:.0f}",
            )  # fmt: skip
        out.print(table)


def print_loss(out: Console, results: list[Results]) -> None:
    """Goodput beside the bound."""
    title = "goodput over a lossy 25 Gb/s link, 100 us round trip, PMTU 4096"
    table = _table(title, "", "loss", "mean, Gb/s", "lowest-highest", "bound", "ratio")
    for row in results:
        gbps, best = row["gbps"], row["bound_gbps"]
        table.add_row(
            row["test"], f"{row['loss']:.1%}", f"{gbps:.2f}", f"{row['lowest']:.2f}-{row['highest']:.2f}",
            f"{best:.2f}", f"{gbps / best:.2f}",
        )  # fmt: skip
    out.print(table)


def print_scale(out: Console, results: Results) -> None:
    """QPs, regions, idleness."""
    best = max(results["QPs"].values())
    table = _table("active QPs, WRITE 64 KiB, one processor for both ends", "QPs", "Gb/s", "of the best")
    for count, gbps in results["QPs"].items():
        table.add_row(str(count), f"{gbps:.1f}", f"{gbps / best:.2f}")
    out.print(table)
    print_pairs(out, {**results["regions"], **results["idle"]})


def print_polling(out: Console, results: list[Results]) -> None:
    """Processor time and latency by rate."""
    title = "64-byte READs at a rate, by how long an idle NIC polls"
    table = _table(title, "polling", "asked for, 1/s", "reached", "processor, each NIC", "median, us", "99 %, us")
    for row in results:
        table.add_row(
            row["polling"], str(row["rate"]), f"{row['reached']:.0f}", f"{row['cpu']:.1%}", f"{row['p50_us']:.1f}",
            f"{row['p99_us']:.1f}",
        )  # fmt: skip
    out.print(table)


def print_pairs(out: Console, results: Results) -> None:
    """Figures by name."""
    table = _table("", "", "")
    table.show_header = False
    for name, value in results.items():
        table.add_row(name, "-" if value is None else f"{value:.4g}")
    out.print(table)


PRINTERS = {
    "table": print_table, "cost": print_cost, "loss": print_loss, "scale": print_scale, "polling": print_polling,
    "start": print_pairs, "limits": print_pairs, "ports": print_pairs,
}  # fmt: skip


def plots(results: Results) -> dict[str, str]:
    """SVG by file name, of the parts that were run."""
    found = {}
    if "table" in results:
        for unit, stem in (("Gb/s", "bandwidth"), ("M/s", "messages"), ("us", "latency")):
            found[f"{stem}.svg"] = svg.bars(f"softrnic, {stem}", _bars(results["table"], unit), unit)
    if "loss" in results:
        rows = [row for row in results["loss"] if row["loss"] > 0]
        curves = {
            test: [(100 * r["loss"], r["gbps"]) for r in rows if r["test"] == test]
            for test in dict.fromkeys(r["test"] for r in rows)
        }
        curves["go-back-N bound"] = sorted({(100 * r["loss"], r["bound_gbps"]) for r in rows})
        found["loss.svg"] = svg.lines("Goodput over a lossy link, 25 Gb/s, 100 us", curves, "packets lost, %", "Gb/s")
    if "scale" in results:
        points = [(float(count), gbps) for count, gbps in results["scale"]["QPs"].items()]
        found["scale.svg"] = svg.lines("Many QPs, WRITE 64 KiB", {"softrnic": points}, "active QPs", "Gb/s")
    return found


def _bars(table: Results, unit: str) -> list[tuple[str, dict[str, float | None]]]:
    rows: list[tuple[str, dict[str, float | None]]] = []
    for case in CASES:
        if case.unit == unit and table["softrnic"].get(case.name):
            ours = median(table["softrnic"][case.name])
            rows.append((case.name, {"softrnic": ours, "target": target_of(case, table), "Linux rxe": case.rxe_figure}))
    for name, (its_unit, samples) in table["others"].items():
        if its_unit == unit and samples:
            rows.append((name, {"other": median(samples)}))
    return rows


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Into a folder; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in plots(results).items():
        (folder / name).write_text(text)
        written.append(folder / name)
    return written
