"""Rules that keep compiled and interpreted kernels alike, checked on the syntax tree (docs/numba.md)."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from softrnic.jit import _closure
from tests.test_imports import SOURCES as MODULES
from tests.test_imports import imports_of, module_name

ROOT = Path(__file__).resolve().parent.parent
SOURCES = list(MODULES.values())
JIT = ROOT / "softrnic" / "jit.py"

COMPILERS = {"njit", "jit", "vectorize", "guvectorize", "cfunc", "stencil", "jitclass"}
KERNEL_DECORATORS = {"kernel", "inline"}
BIG_ENDIAN_DTYPE = re.compile(r">[biufcSUV?]\d+")
FORBIDDEN_NODES = {
    ast.Raise: "raises",
    ast.Try: "handles exceptions",
    ast.Assert: "asserts",
    ast.With: "uses a context manager",
    ast.JoinedStr: "formats a string",
    ast.List: "makes a list",
    ast.Dict: "makes a dict",
    ast.Set: "makes a set",
    ast.ListComp: "makes a list",
    ast.DictComp: "makes a dict",
    ast.SetComp: "makes a set",
    ast.GeneratorExp: "makes a generator",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def name_of(node: ast.expr) -> str:
    """The last word of a decorator or callee: njit for numba.njit(cache=True)."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def kernels(tree: ast.AST) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if name_of(decorator) in KERNEL_DECORATORS:
                    yield name_of(decorator), node


KERNEL_FILES = [path for path in SOURCES if any(kernels(ast.parse(path.read_text(encoding="utf-8"))))]


def body_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    for statement in function.body:
        yield from ast.walk(statement)


def bare_compilers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                if name_of(decorator) in COMPILERS:
                    yield f"{node.lineno} {node.name}: @{name_of(decorator)}, not @kernel or @inline"


def undocumented_kernels(tree: ast.AST) -> Iterator[str]:
    for kind, function in kernels(tree):
        if kind == "kernel" and not ast.get_docstring(function):
            yield f"{function.lineno} {function.name}: no docstring"


def checking_build(function: ast.FunctionDef) -> set[ast.AST]:
    """What stands under `if CHECK ...`: bounds checks, compiled away but in a build that asks for them."""
    tests = ((node, ast.walk(node.test)) for node in body_nodes(function) if isinstance(node, ast.If))
    guarded = [node for node, test in tests if any(isinstance(n, ast.Name) and n.id == "CHECK" for n in test)]
    return {inner for node in guarded for statement in node.body for inner in ast.walk(statement)}


def forbidden_constructs(tree: ast.AST) -> Iterator[str]:
    for _, function in kernels(tree):
        for node in set(body_nodes(function)) - checking_build(function):
            if what := FORBIDDEN_NODES.get(type(node)):
                yield f"{getattr(node, 'lineno', function.lineno)} {function.name}: {what}"


def big_endian_dtypes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if BIG_ENDIAN_DTYPE.fullmatch(node.value):
                yield f"{node.lineno} dtype {node.value!r}: numba cannot type it"
        elif isinstance(node, ast.Attribute) and node.attr == "newbyteorder":
            yield f"{node.lineno} newbyteorder: numba cannot type it"


def globals_read(function: ast.FunctionDef) -> set[str]:
    """Names a kernel loads and neither takes as an argument nor assigns."""
    names = [node for node in body_nodes(function) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {arg.arg for arg in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
    return {node.id for node in names} - own


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_follows_the_rules(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    rules = [undocumented_kernels, forbidden_constructs, big_endian_dtypes]
    if path != JIT:
        rules.append(bare_compilers)
    assert [wrong for rule in rules for wrong in rule(tree)] == []


def writable_globals(path: Path) -> list[str]:
    """A kernel keeps the copy of a global array it was compiled with, so such arrays are read-only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    reads = {name: function.name for _, function in kernels(tree) for name in globals_read(function)}
    if not reads:
        return []
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [
        f"{kernel} reads {name}: a module global that can be written"
        for name, kernel in sorted(reads.items())
        if isinstance(value := getattr(module, name, None), np.ndarray) and value.flags.writeable
    ]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_kernels_read_no_writable_global_array(path: Path) -> None:
    assert writable_globals(path) == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("@njit\ndef f(): pass", bare_compilers),
        ("@numba.njit(cache=True)\ndef f(): pass", bare_compilers),
        ("@kernel\ndef f(): return 1", undocumented_kernels),
        ("@inline\ndef f(a):\n    raise ValueError", forbidden_constructs),
        ("@kernel\ndef f(a):\n    '''Doc.'''\n    return [a]", forbidden_constructs),
        ("@kernel\ndef f(a):\n    '''Doc.'''\n    return f'{a}'", forbidden_constructs),
        ("X = np.dtype([('a', '>u4')])", big_endian_dtypes),
        ("X = np.dtype('u4').newbyteorder()", big_endian_dtypes),
    ],
)
def test_the_rules_refuse(source: str, rule) -> None:
    assert list(rule(ast.parse(source)))


def test_bounds_checks_may_raise() -> None:
    source = "@inline\ndef f(a):\n    if CHECK and a < 0:\n        raise IndexError\n    return a"
    assert list(forbidden_constructs(ast.parse(source))) == []


def test_globals_read() -> None:
    tree = ast.parse("@kernel\ndef f(a, b):\n    c = a + TABLE[b]\n    return c")
    assert globals_read(next(kernels(tree))[1]) == {"TABLE"}


def imported_files(path: Path) -> set[Path]:
    """The file and all of ours that it imports, directly or not, by the syntax tree."""
    found: set[str] = set()
    todo = {module_name(path)}
    while todo:
        found |= todo
        todo = {target for module in todo for _, target in imports_of(module) if target in MODULES} - found
    return {MODULES[module] for module in found}


@pytest.mark.parametrize("path", KERNEL_FILES, ids=relative)
def test_compile_cache_sees_every_import(path: Path) -> None:
    """softrnic.jit finds imports by a pattern, at every start; a miss would leave a stale kernel in the cache."""
    assert imported_files(path) - _closure(path) == set()
