"""A fuzzing campaign: epoch after epoch from one seed, what it covered, and a finding pinned to its frame.

    result = fuzz(QpType.RC, seed=1, frames=100_000)
    assert result.finding is None, result.finding
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from softrnic.counters import COUNTERS
from softrnic.spec import Nak, Op
from softrnic.verbs import QpState, QpType, WcStatus
from tests.fuzz.drive import run
from tests.fuzz.records import KEPT_BYTES, Verdict
from tests.fuzz.world import PEER_QPN, Epoch, Setting, draw_setting
from tests.model.packets import decode
from tests.sim.invariants import Broken

EPOCH_FRAMES = 20_000
_ROCE_IPV4 = 14  # offset of the IP header that the other codec knows


@dataclass
class Result:
    """What came of a campaign."""

    frames: int = 0
    restarts: int = 0
    epochs: int = 0
    finding: str | None = None
    counters: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    completions: Counter[str] = field(default_factory=Counter)
    opcodes: set[int] = field(default_factory=set)
    states: Counter[str] = field(default_factory=Counter)

    def add(self, epoch: Epoch) -> None:
        """Count what an epoch has seen."""
        fz = epoch.world.fz[0]
        self.epochs += 1
        self.frames += int(fz["frames"])
        self.restarts += int(fz["restarts"])
        self.states[epoch.setting.state.name] += int(fz["frames"])
        counters = epoch.device.record["counters"]
        self.counters.update({row.name: int(counters[row.counter]) for row in COUNTERS})
        self.answers.update({Op(i).name: int(n) for i, n in enumerate(fz["sent_ops"]) if n})
        self.answers.update({"RNR NAK": int(fz["sent_kinds"][1])})
        self.answers.update({f"NAK {Nak(i).name}": int(n) for i, n in enumerate(fz["sent_naks"]) if n})
        for queue in ("send", "recv"):
            self.completions.update(
                {f"{queue} {WcStatus(i).name}": int(n) for i, n in enumerate(fz[f"{queue}_status"]) if n}
            )
        self.opcodes |= {i for i, n in enumerate(fz["in_ops"]) if n}


def fuzz(
    kind: QpType,
    seed: int,
    frames: int,
    *,
    start: int = 0,
    epoch_frames: int = EPOCH_FRAMES,
    tell: Callable[[int, Result], None] | None = None,
) -> Result:
    """Fuzz QPs of one type with `frames` frames from epoch `start` on; `tell` is called before each epoch."""
    result = Result()
    for number in count(start):
        if tell is not None:
            tell(number, result)
        if result.frames >= frames:
            break
        epoch = make_epoch(kind, seed, number)
        verdict = run(epoch.world, min(epoch_frames, frames - result.frames))
        finding = describe(epoch, Verdict(verdict)) if verdict else other_codec_says(epoch)
        result.add(epoch)
        if finding is not None:
            result.finding = f"{kind.name} seed {seed} epoch {number} ({epoch.setting}): {finding}"
            break
    return result


def make_epoch(kind: QpType, seed: int, number: int, setting: Setting | None = None) -> Epoch:
    """The world of one epoch, ready to run."""
    return Epoch(setting or draw_setting(kind, seed, number), (int(kind), seed, number))


def describe(epoch: Epoch, verdict: Verdict) -> str:
    """A finding in words, with the last frame."""
    fz, world = epoch.world.fz[0], epoch.world
    detail = int(fz["detail"])
    what = Broken(detail).name if verdict == Verdict.INVARIANT else f"{detail:#x}"
    off, n = int(world.rx.frames[0]["off"]), int(world.rx.frames[0]["len"])
    return (
        f"{verdict.name} {what} after {int(fz['frames'])} frames, QP in {QpState(int(epoch.qp.record['state'])).name}, "
        f"was in {QpState(int(fz['state0'])).name}, ePSN was {int(fz['epsn0']):#x}; last frame "
        f"{world.rx.slab[off : off + min(n, 120)].tobytes().hex()}"
    )


def other_codec_says(epoch: Epoch) -> str | None:
    """The answers put aside, read by a codec that shares nothing with softrnic.wire: what it does not like."""
    fz = epoch.world.fz[0]
    if epoch.setting.kind != QpType.RC or int(fz["is_v6"]) or int(fz["l3"]) != _ROCE_IPV4:
        return None
    for row in epoch.world.kept[: int(fz["kept"])]:
        n = int(row[0]) | int(row[1]) << 8
        frame = row[4 : 4 + n].tobytes()
        assert n < KEPT_BYTES
        try:
            decode(frame)
        except AssertionError as error:
            return f"another codec refuses an answer ({error}): {frame.hex()}"
        if int.from_bytes(frame[47:50], "big") != PEER_QPN:
            return f"an answer for another QP: {frame.hex()}"
    return None
