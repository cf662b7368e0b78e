"""Import directions: each layer knows only those below it; the engine knows no sockets, clocks or threads.

The layers and what each may import are data here. A module that stands in none of them fails, so that a new
file is given its place on purpose.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("softrnic", "netio", "ebpf")

# Lowest first. A module may import its own layer's line and every line above it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("softrnic.spec", "softrnic.errors"),
    ("softrnic.layout", "softrnic.counters", "softrnic.slab"),
    ("softrnic.jit",),
    ("softrnic.hash",),
    ("softrnic.wire", "softrnic.cm"),
    ("softrnic.qp", "softrnic.mem"),
    ("softrnic.engine",),
    ("softrnic.verbs",),
    ("softrnic.migrate",),
    ("netio", "ebpf"),
    ("softrnic.control",),
)
# Of the same line, and yet strangers.
STRANGERS = (("netio", "ebpf"), ("ebpf", "netio"))

# The ports see of the engine its vocabulary only. UDP ports and address resolution write whole packets.
PORT_VOCABULARY = {"softrnic.spec", "softrnic.errors", "softrnic.layout", "softrnic.jit"}
PORTS_THAT_WRITE_PACKETS = ("netio.udp", "netio.arp")

# Kernels have their decorators and intrinsics from softrnic.jit. Beside it, wire.vector makes the vector types that
# numba lacks, and three files name functions of libc to the compiler.
NUMBA_IMPORTERS = (
    "softrnic.jit", "softrnic.wire.vector", "softrnic.mem.process", "netio.libc", "softrnic.control.pump",
)  # fmt: skip

SANS_IO = ("softrnic.hash", "softrnic.wire", "softrnic.cm", "softrnic.qp", "softrnic.mem", "softrnic.engine")
IO_MODULES = {
    *("socket", "socketserver", "ssl", "select", "selectors", "fcntl", "mmap"),
    *("time", "datetime", "sched", "random", "signal"),
    *("threading", "_thread", "queue", "concurrent", "multiprocessing", "subprocess", "asyncio"),
    *("uvloop", "pyroute2", "prometheus_client", "rich", "logging"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def top(module: str) -> str:
    return module.partition(".")[0]


def imports_of(module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import in the module, wherever it stands.

    `from a import b` names a.b if that is a module of ours, else a.
    """
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in SOURCES else base


def layer_of(module: str) -> int | None:
    return next((i for i, line in enumerate(LAYERS) if any(within(module, name) for name in line)), None)


def same_part(a: str, b: str) -> bool:
    """Of one entry in LAYERS: qp.requester and qp.psn, but not qp.psn and mem.mr."""
    return any(within(a, name) and within(b, name) for line in LAYERS for name in line)


def complaint(module: str, target: str) -> str | None:
    """What is wrong with `module` importing `target`, or None."""
    ours = top(target) in PACKAGES
    if any(within(module, part) for part in SANS_IO) and top(target) in IO_MODULES:
        return "does input, output, time or threads"
    if top(target) == "scapy":
        return "scapy is for tests and tools"
    if within(target, "numba") and module not in NUMBA_IMPORTERS:
        return "numba is imported in one place"
    if not ours or target == "softrnic" or same_part(module, target):
        return None
    if (top(module), top(target)) in STRANGERS:
        return "ports and programs do not know each other"
    if top(module) in ("netio", "ebpf") and target not in PORT_VOCABULARY:
        writes_packets = any(within(module, port) for port in PORTS_THAT_WRITE_PACKETS)
        return None if writes_packets and within(target, "softrnic.wire") else "beyond the ports' vocabulary"
    low, high = layer_of(target), layer_of(module)
    if low is None or high is None:
        return None  # its place is asked for by test_every_module_has_a_layer
    return None if low <= high else "imports upwards"


def test_every_module_has_a_layer() -> None:
    assert [m for m in SOURCES if m != "softrnic" and layer_of(m) is None] == []


def test_imports_point_downwards() -> None:
    assert [
        f"{module}:{line} imports {target}: {wrong}"
        for module in SOURCES
        for line, target in imports_of(module)
        if (wrong := complaint(module, target))
    ] == []


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("softrnic.wire.frame", "softrnic.qp.psn"),
        ("softrnic.qp.psn", "softrnic.engine"),
        ("softrnic.qp.psn", "time"),
        ("softrnic.engine", "asyncio"),
        ("softrnic.verbs", "softrnic.control.daemon"),
        ("softrnic.verbs", "netio.raw"),
        ("softrnic.migrate.save", "scapy.all"),
        ("softrnic.mem.copy", "numba"),
        ("netio.raw", "numba.types"),
        ("netio.raw", "softrnic.engine"),
        ("netio.raw", "softrnic.wire.frame"),
        ("ebpf.loader", "netio.raw"),
    ],
)
def test_the_rules_refuse(module: str, target: str) -> None:
    assert complaint(module, target)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("softrnic.qp.requester", "softrnic.qp.psn"),
        ("softrnic.engine", "softrnic.mem.copy"),
        ("softrnic.jit", "numba.core"),
        ("netio.raw", "softrnic.layout"),
        ("netio.udp", "softrnic.wire.frame"),
        ("softrnic.control.daemon", "netio.raw"),
        ("softrnic.control.daemon", "time"),
    ],
)
def test_the_rules_allow(module: str, target: str) -> None:
    assert complaint(module, target) is None


def test_import_softrnic_is_light() -> None:
    """The command line answers --help at once: nothing heavy is loaded before it is used."""
    code = "import sys, softrnic; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    heavy = {"numba", "llvmlite", "pyroute2", "uvloop", "asyncio", "rich", "prometheus_client", "scapy"}
    assert heavy.isdisjoint(loaded)
