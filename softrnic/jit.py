"""The only file of the engine that imports numba: decorators, raw memory and atomics, the compile cache.

`@kernel` marks an entry point (called from Python once per burst), `@inline` a helper that kernels call. Memory
that is not a numpy array of ours is an address (int64) and is touched through the intrinsics below, each with a
pure-Python twin for NUMBA_DISABLE_JIT=1, so that the whole engine also runs, slowly and readably, without a compiler.

Cache: numba keys a cached kernel by its own source file only, so an edit in another module would leave a stale
constant or callee behind. The cache directory of a kernel is therefore named by a digest of its module and of all it
imports, the numba version and the flags that change code.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

JIT = not config.DISABLE_JIT
_ROOT = Path(__file__).resolve().parent.parent
_IMPORT = re.compile(r"^\s*(?:from|import)\s+((?:softrnic|netio|ebpf)[\w.]*)(?:\s+import\s+(\(?[\w, ]*))?", re.M)


@functools.cache
def _module_file(module: str) -> Path | None:
    """Source of a module of this distribution."""
    base = _ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@functools.cache
def _imports(file: Path) -> frozenset[Path]:
    """The source files of ours that one imports."""
    found: set[Path | None] = set()
    for name, items in _IMPORT.findall(file.read_text()):
        found.add(_module_file(name))
        names = [item.strip() for item in items.strip("( ").split(",") if item.strip()]
        found.update(_module_file(f"{name}.{item}") for item in names)
    return frozenset(path for path in found if path is not None)


def _closure(file: Path) -> set[Path]:
    """A source file, and every one of ours that it imports, directly or not."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imports(path)
    return found


@functools.cache
def cache_dir(file: Path) -> str:
    """Where the kernels of a file are cached: a folder named by the digest of all that decides their machine code."""
    h = hashlib.blake2b(digest_size=10)
    h.update(f"{numba.__version__} {np.__version__} {config.BOUNDSCHECK} {platform.machine()} {file}".encode())
    for path in sorted(_closure(file)):
        h.update(path.name.encode())
        h.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(base / "softrnic" / f"numba-{h.hexdigest()}")


def kernel(fn: F) -> F:
    """Entry point called from Python: compiled, cached, without the GIL."""
    config.CACHE_DIR = cache_dir(Path(fn.__code__.co_filename))  # read by numba as it decorates
    compiled: F = njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)(fn)
    return compiled


def inline(fn: F) -> F:
    """Helper called by kernels; LLVM decides about inlining (always, for small ones)."""
    compiled: Any = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)(fn)
    if JIT:
        _widen_literals(compiled)
    return cast(F, compiled)


def _widen_literals(compiled: Any) -> None:
    """A constant argument is an argument: numba would compile the helper, and all it calls, once more for each."""
    template = compiled.get_call_template

    def widened(args: Any, kws: Any) -> Any:
        return template([types.unliteral(a) for a in args], {name: types.unliteral(a) for name, a in kws.items()})

    compiled.get_call_template = widened


# Widen a field of a record to a signed 64-bit integer: kernels compute in nothing else, so that no unsigned or
# narrow type creeps into arithmetic and every helper is compiled once.
i64: Any = np.int64 if JIT else int


def frozen(values: Any, dtype: str) -> np.ndarray:
    """A read-only table that kernels may read as a compile-time constant (opcode masks, CRC tables)."""
    table = np.array(values, dtype=dtype)
    table.setflags(write=False)
    return table


# --- raw memory: addresses are int64, host byte order, no alignment needed ------------------------------------

_I64 = types.int64


def _as_ptr(builder: Any, addr: Any, bits: int) -> Any:
    return builder.inttoptr(addr, ir.IntType(bits).as_pointer())


def _make_load(bits: int, ordering: str | None) -> Any:
    @intrinsic
    def load(typingctx: Any, addr: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ptr = _as_ptr(builder, args[0], bits)
            value = builder.load_atomic(ptr, ordering, bits // 8) if ordering else builder.load(ptr, align=1)
            return builder.zext(value, ir.IntType(64)) if bits < 64 else value

        return _I64(_I64), codegen

    return load


def _make_store(bits: int, ordering: str | None) -> Any:
    @intrinsic
    def store(typingctx: Any, addr: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ptr = _as_ptr(builder, args[0], bits)
            val = builder.trunc(args[1], ir.IntType(bits)) if bits < 64 else args[1]
            if ordering:
                builder.store_atomic(val, ptr, ordering, bits // 8)
            else:
                builder.store(val, ptr, align=1)
            return context.get_dummy_value()

        return types.void(_I64, _I64), codegen

    return store


def _make_rmw(op: str) -> Any:
    @intrinsic
    def rmw(typingctx: Any, addr: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.atomic_rmw(op, _as_ptr(builder, args[0], 64), args[1], "seq_cst")

        return _I64(_I64, _I64), codegen

    return rmw


@intrinsic
def _atomic_cas64(typingctx: Any, addr: Any, expected: Any, desired: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        result = builder.cmpxchg(_as_ptr(builder, args[0], 64), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 0)

    return _I64(_I64, _I64, _I64), codegen


@intrinsic
def _memcpy(typingctx: Any, dst: Any, src: Any, n: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, _as_ptr(builder, args[0], 8), _as_ptr(builder, args[1], 8), args[2], 1)
        return context.get_dummy_value()

    return types.void(_I64, _I64, _I64), codegen


@intrinsic
def _memset(typingctx: Any, dst: Any, byte: Any, n: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.trunc(args[1], ir.IntType(8))
        cgutils.memset(builder, _as_ptr(builder, args[0], 8), args[2], value)
        return context.get_dummy_value()

    return types.void(_I64, _I64, _I64), codegen


def _make_unary(bits: int, name: str) -> Any:
    """An LLVM bit intrinsic (bswap, cttz) of the low `bits` of an int64."""

    @intrinsic
    def unary(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            val = builder.trunc(args[0], ir.IntType(bits)) if bits < 64 else args[0]
            out = builder.bswap(val) if name == "bswap" else builder.cttz(val, ir.Constant(ir.IntType(1), 0))
            return builder.zext(out, ir.IntType(64)) if bits < 64 else out

        return _I64(_I64), codegen

    return unary


@intrinsic
def _pause(typingctx: Any) -> Any:
    """The spin-wait hint of x86; elsewhere nothing."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine() == "x86_64":
            fnty = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, fnty, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


def _make_fence(ordering: str) -> Any:
    @intrinsic
    def fence(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.fence(ordering)
            return context.get_dummy_value()

        return types.void(), codegen

    return fence


def _py_load(bits: int) -> Any:
    n = bits // 8

    def load(addr: int) -> int:
        return int.from_bytes(ctypes.string_at(int(addr), n), "little", signed=bits == 64)

    return load


def _py_store(bits: int) -> Any:
    n = bits // 8
    mask = (1 << bits) - 1

    def store(addr: int, value: int) -> None:
        ctypes.memmove(int(addr), (int(value) & mask).to_bytes(n, "little"), n)

    return store


def _signed64(value: int) -> int:
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _py_rmw(op: Callable[[int, int], int]) -> Any:
    load, store = _py_load(64), _py_store(64)

    def rmw(addr: int, value: int) -> int:
        old = int(load(addr))
        store(addr, op(old, int(value)))
        return old

    return rmw


def _py_cas(addr: int, expected: int, desired: int) -> int:
    old = int(_py_load(64)(addr))
    if old == expected:
        _py_store(64)(addr, desired)
    return old


def _py_memcpy(dst: int, src: int, n: int) -> None:
    ctypes.memmove(int(dst), int(src), int(n))


def _py_memset(dst: int, byte: int, n: int) -> None:
    ctypes.memset(int(dst), int(byte), int(n))


def _py_bswap(bits: int) -> Any:
    def bswap(value: int) -> int:
        swapped = int.from_bytes((int(value) & ((1 << bits) - 1)).to_bytes(bits // 8, "little"), "big")
        return _signed64(swapped) if bits == 64 else swapped

    return bswap


def _py_cttz(value: int) -> int:
    value = int(value) & ((1 << 64) - 1)
    return (value & -value).bit_length() - 1 if value else 64


@njit(nogil=True)
def _array_addr(a):
    return a.ctypes.data


def _py_array_addr(a: np.ndarray) -> int:
    return int(a.ctypes.data)


if JIT:
    ld8, ld16, ld32, ld64 = (_make_load(b, None) for b in (8, 16, 32, 64))
    st8, st16, st32, st64 = (_make_store(b, None) for b in (8, 16, 32, 64))
    ld_acq32, ld_acq64 = _make_load(32, "acquire"), _make_load(64, "acquire")
    st_rel32, st_rel64 = _make_store(32, "release"), _make_store(64, "release")
    atomic_add64, atomic_or64, atomic_xchg64 = _make_rmw("add"), _make_rmw("or"), _make_rmw("xchg")
    atomic_cas64 = _atomic_cas64
    memcpy, memset, pause = _memcpy, _memset, _pause
    fence = _make_fence("acq_rel")  # a ring entry before its index: free on x86
    full_fence = _make_fence("seq_cst")  # a store before a later load, for two sides that each watch the other
    bswap16, bswap32, bswap64 = (_make_unary(b, "bswap") for b in (16, 32, 64))
    cttz64 = _make_unary(64, "cttz")
    addr_of = _array_addr
else:
    ld8, ld16, ld32, ld64 = (_py_load(b) for b in (8, 16, 32, 64))
    st8, st16, st32, st64 = (_py_store(b) for b in (8, 16, 32, 64))
    ld_acq32, ld_acq64, st_rel32, st_rel64 = ld32, ld64, st32, st64
    atomic_add64 = _py_rmw(lambda old, value: old + value)
    atomic_or64 = _py_rmw(lambda old, value: old | value)
    atomic_xchg64 = _py_rmw(lambda old, value: value)
    atomic_cas64 = _py_cas
    memcpy, memset = _py_memcpy, _py_memset
    bswap16, bswap32, bswap64 = (_py_bswap(b) for b in (16, 32, 64))
    cttz64 = _py_cttz
    addr_of = _py_array_addr

    def pause() -> None:
        """Nothing to wait for without a second thread of machine code."""

    def fence() -> None:
        """The interpreter reorders nothing."""

    full_fence = fence
