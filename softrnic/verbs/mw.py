"""Memory windows: keys of their own for part of a region, opened and closed by work requests."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from softrnic.errors import VerbsError
from softrnic.layout import MrKind

if TYPE_CHECKING:
    from softrnic.verbs.pd import Pd


class Mw:
    """ibv_mw: a window that BIND_MW work requests open on part of a region."""

    def __init__(self, pd: Pd, kind: int, key: int | None) -> None:
        pd.check_alive()
        if kind not in (1, 2):
            raise VerbsError(errno.EINVAL, f"memory windows are of type 1 or 2, not {kind}")
        self.pd = pd
        self.device = pd.device
        self.kind = kind
        self.index = pd.device.pools.mrs.alloc()
        try:
            self.rkey = pd.device.choose_key(self.index, key)
        except BaseException:
            pd.device.pools.mrs.free(self.index)
            raise
        record = self.device.record["mrs"][self.index]
        record["key"], record["pdn"], record["access"] = self.rkey, pd.pdn, 0
        record["iova"] = record["length"] = record["windows"] = 0
        record["odp"], record["parent"], record["qp"], record["func"] = 0, -1, -1, self.device.func
        record["valid"] = 0
        record["kind"] = MrKind.MW1 if kind == 1 else MrKind.MW2
        self.device.mrs[self.index] = self
        pd.users += 1

    @property
    def valid(self) -> bool:
        """Whether it is bound."""
        return self.device.mrs.get(self.index) is self and bool(self.device.record["mrs"][self.index]["valid"])

    def dealloc(self) -> None:
        """Unbind and free."""
        if self.device.mrs.get(self.index) is not self:
            return
        del self.device.mrs[self.index]
        with self.device.quiesced():
            record = self.device.record["mrs"][self.index]
            if record["valid"]:
                self.device.record["mrs"][int(record["parent"])]["windows"] -= 1
            record["valid"] = 0
            record["kind"] = MrKind.FREE
            self.device.drop_key(self.rkey)
        self.device.pools.mrs.free(self.index)
        self.pd.users -= 1

    def __enter__(self) -> Mw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dealloc()
