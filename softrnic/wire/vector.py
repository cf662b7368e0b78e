"""Vector registers for kernels, which numba does not have: two types, and the operations a CRC needs.

A Vector lives between the operations of a kernel; it is never an argument of an entry point. There is no twin
without a compiler: who uses this file has other code for then. An operation that the CPU lacks stops the
compiler, so ask FEATURES first.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

# What the compiler may use, by numba's own rule: LLVM's names, as in "+avx512f".
FEATURES = frozenset((config.CPU_FEATURES or get_host_cpu_features()).split(","))

_I8, _I64, _I128 = ir.IntType(8), ir.IntType(64), ir.IntType(128)
_ADDR = types.int64


class Vector(types.Type):
    """`lanes` 64-bit words in one register; a value inside kernels only."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes * 64})")


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_I64, fe_type.lanes))


V128, V512 = Vector(2), Vector(8)
_IR128, _IR512 = ir.VectorType(_I64, 2), ir.VectorType(_I64, 8)
_BYTES512, _MASK512 = ir.VectorType(_I8, 64), ir.VectorType(ir.IntType(1), 64)


def _call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """Call an LLVM intrinsic."""
    fnty = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, fnty, name), args)


def _pointer(builder: Any, addr: Any, what: Any) -> Any:
    return builder.inttoptr(addr, what.as_pointer())


def constant(vector: Vector, words: list[int]) -> Any:
    """An intrinsic of no arguments that is a constant vector."""

    @intrinsic
    def value(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return ir.Constant(ir.VectorType(_I64, vector.lanes), words)

        return vector(), codegen

    return value


def _make_load(vector: Vector) -> Any:
    @intrinsic
    def load(typingctx: Any, addr: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_pointer(builder, args[0], ir.VectorType(_I64, vector.lanes)), align=1)

        return vector(_ADDR), codegen

    return load


@intrinsic
def store(typingctx: Any, addr: Any, v: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=1)
        return context.get_dummy_value()

    return types.void(_ADDR, v), codegen


@intrinsic
def xor(typingctx: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.xor(args[0], args[1])

    return a(a, b), codegen


def _make_multiply(halves: int) -> Any:
    """Carry-less product, per 128-bit lane, of the low (0x00) or of the high (0x11) halves."""

    @intrinsic
    def multiply(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            name = "llvm.x86.pclmulqdq" + (".512" if a.lanes == 8 else "")
            return _call(builder, name, args[0].type, [*args, ir.Constant(_I8, halves)])

        return a(a, b), codegen

    return multiply


multiply_low, multiply_high = _make_multiply(0x00), _make_multiply(0x11)
load128, load512 = _make_load(V128), _make_load(V512)


@intrinsic
def sum_lanes(typingctx: Any, v: Any) -> Any:
    """The four 128-bit lanes of a V512, added."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def part(v: Any, words: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), len(words)), words)
            return builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask)

        half = builder.xor(part(args[0], [0, 1, 2, 3]), part(args[0], [4, 5, 6, 7]))
        return builder.xor(part(half, [0, 1]), part(half, [2, 3]))

    return V128(V512), codegen


@intrinsic
def pack(typingctx: Any, low: Any, high: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = ir.Constant(_IR128, ir.Undefined)
        for i in (0, 1):
            v = builder.insert_element(v, args[i], ir.Constant(ir.IntType(32), i))
        return v

    return V128(types.int64, types.int64), codegen


@intrinsic
def high_word(typingctx: Any, v: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(ir.IntType(32), 1))

    return types.int64(V128), codegen


@intrinsic
def shift_up(typingctx: Any, v: Any, bits: Any) -> Any:
    """All 128 bits, by fewer than 128, towards higher addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shifted = builder.shl(builder.bitcast(args[0], _I128), builder.zext(args[1], _I128))
        return builder.bitcast(shifted, _IR128)

    return V128(V128, types.int64), codegen


@intrinsic
def shift_down_32(typingctx: Any, v: Any) -> Any:
    """All 128 bits, by 32, towards lower addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shifted = builder.lshr(builder.bitcast(args[0], _I128), ir.Constant(_I128, 32))
        return builder.bitcast(shifted, _IR128)

    return V128(V128), codegen


@intrinsic
def double_words(typingctx: Any, v: Any) -> Any:
    """Each 64-bit word shifted up by one bit."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.shl(args[0], ir.Constant(_IR128, [1, 1]))

    return V128(V128), codegen


@intrinsic
def load512_masked(typingctx: Any, addr: Any, mask: Any) -> Any:
    """The bytes whose mask bit is set, zero elsewhere; memory under a clear bit is not touched."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        operands = [
            _pointer(builder, args[0], _BYTES512),
            ir.Constant(ir.IntType(32), 1),
            builder.bitcast(args[1], _MASK512),
            ir.Constant(_BYTES512, [0] * 64),
        ]
        return builder.bitcast(_call(builder, "llvm.masked.load.v64i8.p0", _BYTES512, operands), _IR512)

    return V512(_ADDR, types.int64), codegen


@intrinsic
def store512_masked(typingctx: Any, addr: Any, mask: Any, v: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        operands = [
            builder.bitcast(args[2], _BYTES512),
            _pointer(builder, args[0], _BYTES512),
            ir.Constant(ir.IntType(32), 1),
            builder.bitcast(args[1], _MASK512),
        ]
        _call(builder, "llvm.masked.store.v64i8.p0", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(_ADDR, types.int64, V512), codegen


@intrinsic
def place_state(typingctx: Any, state: Any, r: Any) -> Any:
    """The four bytes of a state at byte 64 - r of a vector; those beyond its end at its beginning."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(_IR512, [0] * 8)
        v = builder.insert_element(zero, args[0], ir.Constant(ir.IntType(32), 0))
        start = builder.insert_element(
            ir.Constant(_BYTES512, ir.Undefined), builder.trunc(args[1], _I8), ir.Constant(ir.IntType(32), 0)
        )
        splat = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
        index = builder.add(
            builder.shuffle_vector(start, ir.Constant(_BYTES512, ir.Undefined), splat),
            ir.Constant(_BYTES512, list(range(64))),
        )
        # Byte i of the result is byte (i + r) mod 64 of the source.
        operands = [builder.bitcast(v, _BYTES512), index]
        return builder.bitcast(_call(builder, "llvm.x86.avx512.permvar.qi.512", _BYTES512, operands), _IR512)

    return V512(types.int64, types.int64), codegen


@intrinsic
def select_bytes(typingctx: Any, mask: Any, v: Any) -> Any:
    """`v` where the mask bit is set, zero elsewhere."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask, v = builder.bitcast(args[0], _MASK512), builder.bitcast(args[1], _BYTES512)
        return builder.bitcast(builder.select(mask, v, ir.Constant(_BYTES512, [0] * 64)), _IR512)

    return V512(types.int64, V512), codegen
