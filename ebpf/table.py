"""The rules of one interface as they stand in the kernel: maps, and the programs bound to them.

Decides how rules get in and counters out. Knows no interface: a table is in force where one of its programs
is attached, which is `steering.py`'s to do.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from typing import Self

from ebpf.bpf import Map, MapFlag, MapType, Program
from ebpf.builder import Builder, relocate
from ebpf.rules import (
    COUNT,
    KEY,
    MAX_QUEUES,
    MAX_RULES,
    MAX_TARGETS,
    VALUE,
    Address,
    Count,
    Counter,
    Entry,
    Rule,
    pack_key,
    pack_rule,
    socket_slot,
    unpack_entry,
)

_INDEX = struct.Struct("=I")  # keys of the array-like maps, and descriptors in the socket map


class RuleTable:
    """Rules, counters and AF_XDP sockets. What is not RoCEv2, or has no rule, is the host's."""

    def __init__(self) -> None:
        index = _INDEX.size
        with ExitStack() as undo:
            self._rules = undo.enter_context(Map(
                MapType.HASH, "softrnic_rules", key_size=KEY.size, value_size=VALUE.size,
                max_entries=MAX_RULES, flags=MapFlag.NO_PREALLOC,
            ))  # fmt: skip
            self._counters = undo.enter_context(Map(
                MapType.ARRAY, "softrnic_count", key_size=index, value_size=COUNT.size,
                max_entries=len(Counter),
            ))  # fmt: skip
            self._sockets = undo.enter_context(Map(
                MapType.XSKMAP, "softrnic_xsk", key_size=index, value_size=index,
                max_entries=MAX_TARGETS * MAX_QUEUES,
            ))  # fmt: skip
            self._maps = undo.pop_all()

    def load(self, built: Builder) -> Program:
        """Load a program that works on this table."""
        maps = (self._rules, self._counters, self._sockets)  # in the order of MapIndex
        code = relocate(built.code(), [each.fileno() for each in maps])
        return Program(built.kind, built.name, code, flags=built.flags)

    def add(self, address: Address | None, qpn: int | None, rule: Rule) -> None:
        """Set the rule for a destination; None is any. A rule that stands there is replaced, counters too."""
        self._rules[pack_key(address, qpn)] = pack_rule(rule)

    def remove(self, address: Address | None, qpn: int | None) -> None:
        """Remove a rule; KeyError if there is none."""
        del self._rules[pack_key(address, qpn)]

    def entry(self, address: Address | None, qpn: int | None) -> Entry:
        """The rule for a destination with its counters; KeyError if there is none."""
        key = pack_key(address, qpn)
        return unpack_entry(key, self._rules[key])

    def entries(self) -> list[Entry]:
        """All rules with their counters."""
        return [unpack_entry(key, self._rules[key]) for key in self._rules]

    def counters(self) -> dict[Counter, Count]:
        """What has become of all RoCEv2 packets that the program has seen."""
        return {each: Count(*COUNT.unpack(self._counters[_INDEX.pack(each)])) for each in Counter}

    def add_xsk(self, fd: int, target: int = 0, queue: int = 0) -> None:
        """Make the AF_XDP socket function `target`'s on receive queue `queue`, until it is closed."""
        self._sockets[_INDEX.pack(socket_slot(target, queue))] = _INDEX.pack(fd)

    def close(self) -> None:
        """Let go of the maps: they last as long as a program that works on them."""
        self._maps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
