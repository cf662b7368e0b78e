"""Asking a daemon, and rows as rdma(8) prints them: what link, res, statistic, qp, function and migrate share."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softrnic.errors import SoftRnicError

if TYPE_CHECKING:
    from softrnic.control.rpc import Request

Row = dict[str, Any]


def default_socket() -> Path:
    """Where a daemon listens when nobody says anything else: SOFTRNIC_SOCKET, or in the place for such things."""
    given = os.environ.get("SOFTRNIC_SOCKET")
    if given:
        return Path(given)
    directory = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "/tmp")  # noqa: S108
    return Path(directory) / "softrnic.sock"


def add_socket(parser: argparse.ArgumentParser) -> None:
    """The option that every asking command has."""
    parser.add_argument(
        "--socket", type=Path, default=default_socket(), metavar="PATH", help="of the daemon (default: %(default)s)"
    )


def add_show_options(parser: argparse.ArgumentParser) -> None:
    """Those of rdma(8)."""
    add_socket(parser)
    parser.add_argument("-j", "--json", action="store_true", help="as JSON")
    parser.add_argument("-p", "--pretty", action="store_true", help="as JSON with line breaks")
    parser.add_argument("-d", "--details", action="store_true", help="also what rdma(8) does not have")


def ask(args: argparse.Namespace, request: Request, on_progress: Callable[[Any], None] = lambda _: None) -> Any:
    """Ask the daemon."""
    from softrnic.control.rpc import call

    return call(args.socket, request, on_progress)


def pairs(words: Sequence[str]) -> dict[str, str]:
    """`name value` pairs."""
    if len(words) % 2:
        raise SoftRnicError(f"{words[-1]}: a value is missing")
    return dict(zip(words[::2], words[1::2], strict=True))


def show_words(words: Sequence[str], kinds: Sequence[str] = ()) -> tuple[str, str, dict[str, str]]:
    """`show [KIND] [link NAME] [name value]...`: the kind, the link, the filters."""
    rest = list(words)
    if rest and rest[0] in ("show", "list", "lst"):
        rest.pop(0)
    kind = rest.pop(0) if rest and rest[0] in kinds else ""
    filters = pairs(rest)
    return kind, filters.pop("link", "").partition("/")[0], filters


def matching(rows: list[Row], filters: dict[str, str]) -> list[Row]:
    """The rows that have all of these values; a key that no row has is a mistake."""
    for key in filters:
        if rows and not any(key in row for row in rows):
            raise SoftRnicError(f"{key} is not one of {', '.join(rows[0])}")
    return [row for row in rows if all(_text(row.get(key)) == value for key, value in filters.items())]


def print_rows(args: argparse.Namespace, rows: list[Row], known: Sequence[str] | None, *, link: bool = True) -> None:
    """As rdma(8) does: a line per row. `known`: the keys of rdma(8); others are shown with -d, and in JSON."""
    if args.json or args.pretty:
        print(json.dumps(rows, indent=4 if args.pretty else None))
        return
    for row in rows:
        head = f"link {row['ifname']}/{row.get('port', 1)}" if link else f"{row['ifindex']}: {row['ifname']}:"
        shown = [
            f"{key} {_text(value)}"
            for key, value in row.items()
            if key not in ("ifindex", "ifname", "port") and (known is None or args.details or key in known)
        ]
        print(" ".join([head, *shown]))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(v) for v in value)
    if isinstance(value, dict):
        return "/".join(_text(v) for v in value.values())
    return str(value).lower() if isinstance(value, bool) else str(value)
