"""Plots as SVG text: bars that are compared, and lines over a logarithmic axis. No more than the bench needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#1f6f8b", "#c8553d", "#6a994e", "#8d6a9f", "#b08900", "#555555")
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 190, 90, 40, 46
_ROW = 20


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _page(height: float, title: str, body: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, _text(12, 24, title, size=15), *body, "</svg>\n"])


def bars(title: str, rows: Sequence[tuple[str, Mapping[str, float | None]]], unit: str) -> str:
    """One group of bars per row, one bar per named value; None is left out."""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    known = [v for _, values in rows for v in values.values() if v is not None]
    scale = (_WIDTH - _LEFT - _RIGHT) / max([*known, 1e-9])
    body, y = [], float(_TOP)
    for label, values in rows:
        shown = [(name, v) for name, v in values.items() if v is not None]
        body.append(_text(_LEFT - 8, y + len(shown) * _ROW / 2 + 2, label, anchor="end"))
        for name, value in shown:
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            body.append(
                f'<rect x="{_LEFT}" y="{y:.1f}" width="{value * scale:.1f}" height="{_ROW - 5}" fill="{colour}"/>'
            )
            body.append(_text(_LEFT + value * scale + 5, y + 12, f"{value:.3g}", size=11))
            y += _ROW
        y += 10
    for i, name in enumerate(names):
        x = _LEFT + i * 140
        body.append(f'<rect x="{x}" y="{y:.1f}" width="12" height="12" fill="{_COLOURS[i % len(_COLOURS)]}"/>')
        body.append(_text(x + 17, y + 11, name))
    body.append(_text(12, y + 11, unit))
    return _page(y + 28, title, body)


def lines(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], x_name: str, unit: str) -> str:
    """Curves of (x > 0, y >= 0): x logarithmic, y from zero."""
    height, left = 420, 60
    points = [p for curve in curves.values() for p in curve]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    top = max(y for _, y in points) * 1.05 or 1.0
    span = math.log(high / low) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (_WIDTH - left - 150) * math.log(x / low) / span
        return across, height - _BOTTOM - (height - _BOTTOM - _TOP) * y / top

    body = []
    for x in sorted({x for x, _ in points}):
        px, _ = at(x, 0)
        body.append(f'<line x1="{px:.1f}" y1="{_TOP}" x2="{px:.1f}" y2="{height - _BOTTOM}" stroke="#e5e5e5"/>')
        body.append(_text(px, height - _BOTTOM + 16, f"{x:g}", anchor="middle", size=11))
    for i in range(6):
        _, py = at(low, top * i / 5)
        body.append(f'<line x1="{left}" y1="{py:.1f}" x2="{_WIDTH - 150}" y2="{py:.1f}" stroke="#e5e5e5"/>')
        body.append(_text(left - 6, py + 4, f"{top * i / 5:.3g}", anchor="end", size=11))
    for i, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in curve))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<rect x="{_WIDTH - 138}" y="{_TOP + 22 * i}" width="12" height="12" fill="{colour}"/>')
        body.append(_text(_WIDTH - 121, _TOP + 22 * i + 11, name))
    body.append(_text((left + _WIDTH - 150) / 2, height - 10, x_name, anchor="middle"))
    body.append(_text(left, _TOP - 6, unit, size=11))
    return _page(height, title, body)
