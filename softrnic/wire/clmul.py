"""CRC-32 by carry-less multiplication: 512-bit (AVX-512, VPCLMULQDQ) and 128-bit (PCLMULQDQ) kernels.

Decides how to fold; which kernel runs is `crc32`'s business. Here are also the vector types and LLVM intrinsics the
kernels are made of: nothing else needs vectors, and numba has none.

How it works (after Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", 2009). Registers
are reflected: bit i of a 64-bit half is the coefficient of x^(63-i), and the half first in memory is the higher one.

* Fold: a 128-bit lane A = H x^64 + L that stands D bits before another is moved onto it as
  H (x^(D+64) mod P) + L (x^D mod P). Multiplying two reflected halves yields the product times x, so the constants
  are x^(D+63) and x^(D-1). Four accumulators hide the latency of the multiplier.
* The head of a message, not the tail, is made the odd block: zeros in front of a message change nothing once the
  incoming state has been XORed into its first four bytes. So the blocks end where the message ends.
* Reduce: every half that is left is multiplied by x^(d+32) mod P, d bits before the end, and all are added: 95 bits
  S. Then Barrett: Q = floor(S / P) from one multiplication by floor(x^95 / P), and S - Q P from another.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

from softrnic.jit import inline, ld8, ld32, ld64, st8, st32, st64
from softrnic.wire.crc_table import TABLE
from softrnic.wire.gf2 import CRC32, divide, power, reflect

# --- what the compiler may use: numba's own rule --------------------------------------------------------------

_FEATURES = set((config.CPU_FEATURES or get_host_cpu_features()).split(","))
HAS_128 = _FEATURES.issuperset({"+pclmul", "+sse4.1"})
HAS_512 = _FEATURES.issuperset({"+vpclmulqdq", "+avx512f", "+avx512bw", "+avx512vl", "+avx512vbmi"})

# --- vector types ---------------------------------------------------------------------------------------------

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


def _constant(vector: Vector, words: list[int]) -> Any:
    """An intrinsic of no arguments that is a constant vector."""

    @intrinsic
    def constant(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return ir.Constant(ir.VectorType(_I64, vector.lanes), words)

        return vector(), codegen

    return constant


def _make_load(vector: Vector) -> Any:
    @intrinsic
    def load(typingctx: Any, addr: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_pointer(builder, args[0], ir.VectorType(_I64, vector.lanes)), align=1)

        return vector(_ADDR), codegen

    return load


@intrinsic
def _store(typingctx: Any, addr: Any, v: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=1)
        return context.get_dummy_value()

    return types.void(_ADDR, v), codegen


@intrinsic
def _xor(typingctx: Any, a: Any, b: Any) -> Any:
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


_multiply_low, _multiply_high = _make_multiply(0x00), _make_multiply(0x11)
_load128, _load512 = _make_load(V128), _make_load(V512)


@intrinsic
def _sum_lanes(typingctx: Any, v: Any) -> Any:
    """The four 128-bit lanes of a V512, added."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def part(v: Any, words: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), len(words)), words)
            return builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask)

        half = builder.xor(part(args[0], [0, 1, 2, 3]), part(args[0], [4, 5, 6, 7]))
        return builder.xor(part(half, [0, 1]), part(half, [2, 3]))

    return V128(V512), codegen


@intrinsic
def _pack(typingctx: Any, low: Any, high: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = ir.Constant(_IR128, ir.Undefined)
        for i in (0, 1):
            v = builder.insert_element(v, args[i], ir.Constant(ir.IntType(32), i))
        return v

    return V128(types.int64, types.int64), codegen


@intrinsic
def _high_word(typingctx: Any, v: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(ir.IntType(32), 1))

    return types.int64(V128), codegen


@intrinsic
def _shift_up(typingctx: Any, v: Any, bits: Any) -> Any:
    """All 128 bits, by fewer than 128, towards higher addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shifted = builder.shl(builder.bitcast(args[0], _I128), builder.zext(args[1], _I128))
        return builder.bitcast(shifted, _IR128)

    return V128(V128, types.int64), codegen


@intrinsic
def _shift_down_32(typingctx: Any, v: Any) -> Any:
    """All 128 bits, by 32, towards lower addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shifted = builder.lshr(builder.bitcast(args[0], _I128), ir.Constant(_I128, 32))
        return builder.bitcast(shifted, _IR128)

    return V128(V128), codegen


@intrinsic
def _double_words(typingctx: Any, v: Any) -> Any:
    """Each 64-bit word shifted up by one bit."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.shl(args[0], ir.Constant(_IR128, [1, 1]))

    return V128(V128), codegen


@intrinsic
def _load512_masked(typingctx: Any, addr: Any, mask: Any) -> Any:
    """The bytes whose mask bit is set, zero elsewhere; memory under a clear bit is not touched."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], _BYTES512)
        operands = [
            pointer,
            ir.Constant(ir.IntType(32), 1),
            builder.bitcast(args[1], _MASK512),
            ir.Constant(_BYTES512, [0] * 64),
        ]
        return builder.bitcast(_call(builder, "llvm.masked.load.v64i8.p0", _BYTES512, operands), _IR512)

    return V512(_ADDR, types.int64), codegen


@intrinsic
def _store512_masked(typingctx: Any, addr: Any, mask: Any, v: Any) -> Any:
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
def _rotate_state(typingctx: Any, state: Any, r: Any) -> Any:
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
def _select_bytes(typingctx: Any, mask: Any, v: Any) -> Any:
    """`v` where the mask bit is set, zero elsewhere."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        chosen = builder.select(
            builder.bitcast(args[0], _MASK512), builder.bitcast(args[1], _BYTES512), ir.Constant(_BYTES512, [0] * 64)
        )
        return builder.bitcast(chosen, _IR512)

    return V512(types.int64, V512), codegen


# --- constants ------------------------------------------------------------------------------------------------


def _fold_by(vector: Vector, bits: int) -> Any:
    """What moves every 128-bit lane `bits` towards the end."""
    pair = [reflect(power(bits + 63), 64), reflect(power(bits - 1), 64)]
    return _constant(vector, pair * (vector.lanes // 2))


_by_16_bytes, _by_32_bytes, _by_48_bytes, _by_64_bytes = (_fold_by(V128, 128 * i) for i in (1, 2, 3, 4))
_by_64, _by_128, _by_192, _by_256 = (_fold_by(V512, 512 * i) for i in (1, 2, 3, 4))

_to_end = [reflect(power(64 * i + 32), 64) for i in range(7, -1, -1)]
_to_end_512, _to_end_128 = _constant(V512, _to_end), _constant(V128, _to_end[-2:])
_barrett = _constant(V128, [reflect(divide(1 << 95)[0], 64), 0])
_modulus = _constant(V128, [reflect(CRC32 & 0xFFFFFFFF, 32) << 1, 0])


# --- kernels --------------------------------------------------------------------------------------------------


@inline
def _fold(v, k):
    return _xor(_multiply_low(v, k), _multiply_high(v, k))


@inline
def _reduce(s):
    """95 bits, x^0 at bit 126, modulo P.

    S / x^32 is bits 32 to 94. Its product with floor(x^95 / P) has Q in bits 0 to 62 and of bit 63 something that
    must go: doubling drops it. Then Q P has its lowest 32 coefficients in bits 64 to 95.
    """
    q = _double_words(_multiply_low(_shift_down_32(s), _barrett()))
    return (_high_word(s) >> 31 ^ _high_word(_multiply_low(q, _modulus()))) & 0xFFFFFFFF


def _make_few(copy: bool) -> Any:
    @inline
    def few(crc, dst, src, n):
        """Fewer than 4 bytes, into which the state does not fit."""
        for i in range(n):
            byte = ld8(src + i)
            if copy:
                st8(dst + i, byte)
            crc = (crc >> 8) ^ int(TABLE[0, (crc ^ byte) & 0xFF])
        return crc

    return few


def _make_128(copy: bool) -> Any:
    few = _make_few(copy)

    @inline
    def short(crc, dst, src, n):
        """4 to 15 bytes: one block of which they are the end."""
        if n >= 8:
            low, high = ld64(src), ld64(src + n - 8)
            if copy:
                st64(dst, low)
                st64(dst + n - 8, high)
            up = 8 * (16 - n)  # 8 to 64
            a = _pack((low ^ crc) << (up - 8) << 8, high ^ crc >> (64 - up))
        else:
            low, high = ld32(src), ld32(src + n - 4)
            if copy:
                st32(dst, low)
                st32(dst + n - 4, high)
            a = _pack(0, ((low | high << 8 * (n - 4)) ^ crc) << 8 * (8 - n))
        return _reduce(_fold(a, _to_end_128()))

    @inline
    def crc128(crc, dst, src, n):
        """CRC of n bytes at `src`, 16 at a time; they are also stored at `dst` if this is the copying one."""
        if n < 16:
            return short(crc, dst, src, n) if n >= 4 else few(crc, dst, src, n)
        a = _load128(src)
        if copy:
            _store(dst, a)
        r = ((n - 1) & 15) + 1
        # The head's r bytes to the end of a block; of a state that ends beyond, the rest goes to the next block.
        a = _shift_up(_xor(a, _pack(crc, 0)), 8 * (16 - r))
        rest = crc >> 8 * r if r < 4 else 0
        end = src + n
        src += r
        dst += r
        if src == end:
            return _reduce(_fold(a, _to_end_128()))
        b = _load128(src)
        if copy:
            _store(dst, b)
        b = _xor(b, _pack(rest, 0))
        src += 16
        dst += 16
        if end - src >= 96:
            c, d = _load128(src), _load128(src + 16)
            if copy:
                _store(dst, c)
                _store(dst + 16, d)
            src += 32
            dst += 32
            while end - src >= 64:
                v, w, x, y = _load128(src), _load128(src + 16), _load128(src + 32), _load128(src + 48)
                if copy:
                    _store(dst, v)
                    _store(dst + 16, w)
                    _store(dst + 32, x)
                    _store(dst + 48, y)
                a = _xor(_fold(a, _by_64_bytes()), v)
                b = _xor(_fold(b, _by_64_bytes()), w)
                c = _xor(_fold(c, _by_64_bytes()), x)
                d = _xor(_fold(d, _by_64_bytes()), y)
                src += 64
                dst += 64
            a = _xor(_xor(_fold(a, _by_48_bytes()), _fold(b, _by_32_bytes())), _xor(_fold(c, _by_16_bytes()), d))
        else:
            a = _xor(_fold(a, _by_16_bytes()), b)
        while src < end:
            b = _load128(src)
            if copy:
                _store(dst, b)
            a = _xor(_fold(a, _by_16_bytes()), b)
            src += 16
            dst += 16
        return _reduce(_fold(a, _to_end_128()))

    return crc128


def _make_512(copy: bool) -> Any:
    few = _make_few(copy)

    @inline
    def crc512(crc, dst, src, n):
        """CRC of n bytes at `src`, 64 at a time; they are also stored at `dst` if this is the copying one."""
        if n < 4:
            return few(crc, dst, src, n)
        r = ((n - 1) & 63) + 1
        mask = -1 << (64 - r)
        head = _load512_masked(src + r - 64, mask)
        if copy:
            _store512_masked(dst + r - 64, mask, head)
        state = _rotate_state(crc, r)
        a = _xor(head, _select_bytes(mask, state))
        end = src + n
        src += r
        dst += r
        if src == end:
            return _reduce(_sum_lanes(_fold(a, _to_end_512())))
        b = _load512(src)
        if copy:
            _store(dst, b)
        b = _xor(b, _select_bytes(~mask, state))
        src += 64
        dst += 64
        if end - src >= 384:
            c = _load512(src)
            d = _load512(src + 64)
            if copy:
                _store(dst, c)
                _store(dst + 64, d)
            src += 128
            dst += 128
            while end - src >= 256:
                v, w, x, y = _load512(src), _load512(src + 64), _load512(src + 128), _load512(src + 192)
                if copy:
                    _store(dst, v)
                    _store(dst + 64, w)
                    _store(dst + 128, x)
                    _store(dst + 192, y)
                a = _xor(_fold(a, _by_256()), v)
                b = _xor(_fold(b, _by_256()), w)
                c = _xor(_fold(c, _by_256()), x)
                d = _xor(_fold(d, _by_256()), y)
                src += 256
                dst += 256
            a = _xor(_xor(_fold(a, _by_192()), _fold(b, _by_128())), _xor(_fold(c, _by_64()), d))
        else:
            a = _xor(_fold(a, _by_64()), b)
        while src < end:
            b = _load512(src)
            if copy:
                _store(dst, b)
            a = _xor(_fold(a, _by_64()), b)
            src += 64
            dst += 64
        return _reduce(_sum_lanes(_fold(a, _to_end_512())))

    return crc512


crc32_512, crc32_copy_512 = _make_512(copy=False), _make_512(copy=True)
crc32_128, crc32_copy_128 = _make_128(copy=False), _make_128(copy=True)
