"""What the documents show is true: their programs run, and what they name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from netio.port import Kind
from softrnic.control.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README, API = ROOT / "README.md", ROOT / "docs" / "api.md"


def programs(document: Path) -> list[str]:
    """Blocks of Python that stand on their own: those that import something."""
    blocks = re.findall(r"^```python\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in blocks if block.startswith(("import ", "from "))]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.timeout(600)  # the first one compiles
def test_the_readme_sends_a_message() -> None:
    (program,) = programs(README)
    assert len([line for line in program.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    done = run(program)
    assert (done.stdout, done.stderr) == ("hello, RDMA\n", "")


@pytest.mark.timeout(600)
def test_the_api_page_writes_into_memory() -> None:
    (program,) = programs(API)
    done = run(program + "    print(target[:17].decode())\n")
    assert (done.stdout, done.stderr) == ("written from afar\n", "")


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", [README, API, ROOT / "docs" / "architecture.md"], ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    """Paths with a slash; those without a top-level directory are softrnic's."""
    paths = re.findall(r"`((?:\w+/)+\w+\.(?:py|md))`", document.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists() and not (ROOT / "softrnic" / path).exists()] == []


def test_the_readme_names_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| `softrnic .*$", text, re.M))
    assert [name for name in COMMANDS if name not in rows] == []


def test_the_readme_has_every_port() -> None:
    text = README.read_text(encoding="utf-8")
    table = text[text.index("## Ports") : text.index("## Status")]
    names = {Kind.FD: ("AF_PACKET", "tap"), Kind.MEMORY: ("memory",), Kind.UDP: ("UDP socket",), Kind.XSK: ("AF_XDP",)}
    assert names.keys() == set(Kind) - {Kind.CLOSED}
    assert [name for kind in names.values() for name in kind if f"| {name} |" not in table] == []


@pytest.mark.parametrize("name", re.findall(r"`softrnic\.(\w+)\(", API.read_text(encoding="utf-8")))
def test_what_the_api_page_calls_exists(name: str) -> None:
    import softrnic

    assert name in softrnic.__all__
    assert callable(getattr(softrnic, name))
