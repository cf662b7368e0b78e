"""A small structured way to write BPF programs in Python, on LLVM's BPF back end (llvmlite comes with numba).

    b = Builder("demo", ProgType.SCHED_CLS)
    length = b.context_u32(0)
    with b.when(length < 64):
        b.leave(DROP)
    b.leave(PASS)
    code = b.code()

Decides nothing about packets. Every number is an unsigned 64-bit `Value` with Python's operators; `Memory` is
a piece of memory (stack, map value, context) with loads and stores at constant offsets; `Variable` is what a
C programmer would call a local variable. There are no loops: steering needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import llvmlite.binding as llvm
from llvmlite import ir

from ebpf.bpf import ProgType

_I1, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_POINTER = ir.IntType(8).as_pointer()
_SECTION = "prog"

# The two-slot instruction that loads the address of a map, include/uapi/linux/bpf.h.
_LD_IMM64, _PSEUDO_MAP_FD = 0x18, 1


class Value:
    """An unsigned 64-bit number or a condition, known when the program runs."""

    def __init__(self, builder: Builder, raw: ir.Value) -> None:
        self.builder = builder
        self.raw = raw

    def _other(self, other: Value | int) -> ir.Value:
        return other.raw if isinstance(other, Value) else ir.Constant(self.raw.type, int(other))

    def _binary(self, name: str, other: Value | int) -> Value:
        return Value(self.builder, getattr(self.builder.ir, name)(self.raw, self._other(other)))

    def _compare(self, how: str, other: Value | int) -> Value:
        return Value(self.builder, self.builder.ir.icmp_unsigned(how, self.raw, self._other(other)))

    def __add__(self, other: Value | int) -> Value:
        return self._binary("add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._binary("mul", other)

    def __floordiv__(self, other: Value | int) -> Value:
        return self._binary("udiv", other)

    def __and__(self, other: Value | int) -> Value:
        return self._binary("and_", other)

    def __or__(self, other: Value | int) -> Value:
        return self._binary("or_", other)

    def __invert__(self) -> Value:
        return Value(self.builder, self.builder.ir.not_(self.raw))

    def __rshift__(self, other: Value | int) -> Value:
        return self._binary("lshr", other)

    def __lt__(self, other: Value | int) -> Value:
        return self._compare("<", other)

    def __ge__(self, other: Value | int) -> Value:
        return self._compare(">=", other)

    def __eq__(self, other: Value | int) -> Value:  # type: ignore[override]  # a condition of the program, not ours
        return self._compare("==", other)

    def __ne__(self, other: Value | int) -> Value:  # type: ignore[override]
        return self._compare("!=", other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("known only when the program runs: use `with builder.when(condition)`")


class Memory:
    """Memory aligned to 8, at an address known when the program runs; offsets are constants, in bytes.

    The verifier wants every access naturally aligned.
    """

    def __init__(self, builder: Builder, pointer: ir.Value) -> None:
        self.builder = builder
        self.pointer = pointer

    def _at(self, offset: int, kind: ir.Type) -> ir.Value:
        emit = self.builder.ir
        moved = emit.gep(self.pointer, [ir.Constant(_I64, offset)], source_etype=ir.IntType(8))
        return emit.bitcast(moved, kind.as_pointer())

    def _at_aligned(self, offset: int, kind: ir.IntType) -> ir.Value:
        if offset % (kind.width // 8):
            raise ValueError(f"offset {offset} is not aligned for {kind.width} bits")
        return self._at(offset, kind)

    def _load(self, offset: int, kind: ir.IntType) -> ir.Value:
        return self.builder.ir.load(self._at_aligned(offset, kind))

    def u8(self, offset: int) -> Value:
        return self.builder.widen(self._load(offset, ir.IntType(8)))

    def u16(self, offset: int) -> Value:
        return self.builder.widen(self._load(offset, _I16))

    def u32(self, offset: int) -> Value:
        return self.builder.widen(self._load(offset, _I32))

    def be16(self, offset: int) -> Value:
        return self.builder.widen(self.builder.ir.bswap(self._load(offset, _I16)))

    def be32(self, offset: int) -> Value:
        return self.builder.widen(self.builder.ir.bswap(self._load(offset, _I32)))

    def put_u32(self, offset: int, value: Value | int) -> None:
        self._store(offset, _I32, value)

    def put_u64(self, offset: int, value: Value | int) -> None:
        self._store(offset, _I64, value)

    def _store(self, offset: int, kind: ir.IntType, value: Value | int) -> None:
        emit = self.builder.ir
        raw = value.raw if isinstance(value, Value) else ir.Constant(_I64, value)
        emit.store(raw if kind is _I64 else emit.trunc(raw, kind), self._at_aligned(offset, kind))

    def add_u64(self, offset: int, value: Value | int) -> None:
        """Add, atomically against every CPU."""
        raw = value.raw if isinstance(value, Value) else ir.Constant(_I64, value)
        self.builder.ir.atomic_rmw("add", self._at_aligned(offset, _I64), raw, "monotonic")

    def is_null(self) -> Value:
        null = ir.Constant(_POINTER, None)
        return Value(self.builder, self.builder.ir.icmp_unsigned("==", self.pointer, null))

    def plus(self, offset: int) -> Memory:
        """The memory from `offset` on (a multiple of 8)."""
        return Memory(self.builder, self._at(offset, ir.IntType(8)))


class Variable:
    """A number that changes on the way."""

    def __init__(self, builder: Builder, value: Value | int) -> None:
        self._builder = builder
        self._slot = builder.allocate(_I64)
        self.set(value)

    def set(self, value: Value | int) -> None:
        raw = value.raw if isinstance(value, Value) else ir.Constant(_I64, value)
        self._builder.ir.store(raw, self._slot)

    def get(self) -> Value:
        return Value(self._builder, self._builder.ir.load(self._slot))


class PointerVariable:
    """A place in memory that changes on the way."""

    def __init__(self, builder: Builder, value: Memory) -> None:
        self._builder = builder
        self._slot = builder.allocate(_POINTER)
        self.set(value)

    def set(self, value: Memory) -> None:
        self._builder.ir.store(value.pointer, self._slot)

    def get(self) -> Memory:
        return Memory(self._builder, self._builder.ir.load(self._slot))


Argument = Value | Memory | int


class Builder:
    """One program under construction: the function `u64 name(context)`, and what the kernel asks about it."""

    def __init__(self, name: str, kind: ProgType, flags: int = 0) -> None:
        self.name = name
        self.kind = kind
        self.flags = flags
        self._module = ir.Module(name)
        self._module.triple = "bpfel"
        self._function = ir.Function(self._module, ir.FunctionType(_I64, [_POINTER]), name)
        self._function.section = _SECTION
        self._entry = self._function.append_basic_block("entry")
        self.ir = ir.IRBuilder(self._entry)
        self.context = Memory(self, self._function.args[0])

    # --- values ---

    def widen(self, raw: ir.Value) -> Value:
        return Value(self, self.ir.zext(raw, _I64))

    def allocate(self, kind: ir.Type) -> ir.Value:
        """Room on the program's stack (512 bytes in all)."""
        with self.ir.goto_entry_block():
            return self.ir.alloca(kind)

    def buffer(self, size: int) -> Memory:
        """`size` bytes of stack, aligned to 8.  Every byte must be written before a helper may read it."""
        words = self.allocate(ir.ArrayType(_I64, (size + 7) // 8))
        return Memory(self, self.ir.bitcast(words, _POINTER))

    def variable(self, value: Value | int) -> Variable:
        return Variable(self, value)

    def pointer_variable(self, value: Memory) -> PointerVariable:
        return PointerVariable(self, value)

    # --- control ---

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """The body runs when the condition holds."""
        with self.ir.if_then(condition.raw):
            yield

    def leave(self, value: Value | int) -> None:
        """Return `value` from the program."""
        raw = value.raw if isinstance(value, Value) else ir.Constant(_I64, value & 0xFFFFFFFF)
        self.ir.ret(raw)

    # --- kernel ---

    def call(self, helper: int, *arguments: Argument) -> Value:
        """Call a kernel helper by number; the result as a number."""
        return Value(self, self._call(helper, _I64, arguments))

    def lookup(self, bpf_map: Value, key: Memory) -> Memory:
        """bpf_map_lookup_elem: the element, or null: the verifier refuses its use before `is_null()`."""
        return Memory(self, self._call(1, _POINTER, (bpf_map, key)))

    def map(self, index: int) -> Value:
        """The map that `relocate` is given at `index`."""
        pseudo = self._module.globals.get("llvm.bpf.pseudo") or ir.Function(
            self._module, ir.FunctionType(_I64, [_I64, _I64]), "llvm.bpf.pseudo"
        )
        kind, number = ir.Constant(_I64, _PSEUDO_MAP_FD), ir.Constant(_I64, index)
        return Value(self, self.ir.call(pseudo, [kind, number]))

    def _call(self, helper: int, result: ir.Type, arguments: tuple[Argument, ...]) -> ir.Value:
        raw = [self._argument(argument) for argument in arguments]
        kind = ir.FunctionType(result, [value.type for value in raw])
        return self.ir.call(self.ir.inttoptr(ir.Constant(_I64, helper), kind.as_pointer()), raw)

    def _argument(self, argument: Argument) -> ir.Value:
        if isinstance(argument, Memory):
            return argument.pointer
        return argument.raw if isinstance(argument, Value) else ir.Constant(_I64, argument)

    # --- output ---

    def code(self) -> bytes:
        """The instructions, with map indexes where the kernel wants descriptors: see `relocate`."""
        module, machine = self._optimised()
        elf = llvm.ObjectFileRef.from_data(machine.emit_object(module))
        return next(bytes(part.data()) for part in elf.sections() if part.name() == _SECTION.encode())

    def listing(self) -> str:
        """The program in BPF assembly, for people."""
        module, machine = self._optimised()
        return str(machine.emit_assembly(module))

    def _optimised(self) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        module = llvm.parse_assembly(str(self._module))
        module.verify()
        machine = llvm.Target.from_triple("bpfel").create_target_machine(cpu="v2", opt=2)
        passes = llvm.create_pass_builder(machine, llvm.PipelineTuningOptions(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        return module, machine


def relocate(code: bytes, map_fds: list[int]) -> bytes:
    """Put the descriptors of the maps in the place of their indexes."""
    out = bytearray(code)
    for at in range(0, len(out), 8):
        if out[at] == _LD_IMM64 and out[at + 1] >> 4 == _PSEUDO_MAP_FD:
            index = int.from_bytes(out[at + 4 : at + 8], "little")
            out[at + 4 : at + 8] = map_fds[index].to_bytes(4, "little")
    return bytes(out)
