"""Which Debian mirror this machine uses, read from its apt sources: none is named anywhere else.

Reads both formats of sources.list(5). Knows nothing of what is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import UnavailableError


class Source(NamedTuple):
    uri: str
    suite: str
    components: tuple[str, ...]


def debian_mirror(etc: Path = Path("/etc")) -> str:
    """The URI from which the machine has its own Debian release."""
    release = _os_release(etc / "os-release")
    if release.get("ID") != "debian":
        raise UnavailableError(f"machine lacks: Debian (os-release: {release.get('ID', 'nothing')})")
    codename = release.get("VERSION_CODENAME", "")
    for source in sources(etc / "apt"):
        if source.suite == codename and "main" in source.components:
            return source.uri
    raise UnavailableError(f"machine lacks: an apt source for Debian {codename}, component main")


def sources(apt: Path) -> Iterator[Source]:
    """Every enabled source of binary packages, one for each URI and suite, in the order apt reads them."""
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(encoding="utf-8")
            yield from _one_line(text) if path.suffix == ".list" else _deb822(text)


def _one_line(text: str) -> Iterator[Source]:
    """`deb [ option=value ... ] uri suite component ...`"""
    for line in text.splitlines():
        if match := re.match(r"\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line):
            yield Source(match[1], match[2], tuple(match[3].split()))


def _deb822(text: str) -> Iterator[Source]:
    """Stanzas of `Field: value ...`, where a line that starts with a blank goes on with the one before."""
    text = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", text):
        lines = re.sub(r"\n[ \t]+", " ", stanza).splitlines()
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        fields = {name.strip().lower(): value.split() for name, value in pairs}
        if fields.get("enabled", ["yes"]) in (["no"], ["false"]) or "deb" not in fields.get("types", []):
            continue
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield Source(uri, suite, tuple(fields.get("components", [])))


def _os_release(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name: value.strip("\"'") for name, value in pairs}
