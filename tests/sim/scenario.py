"""What a seed stands for: the links, the queue pairs with their attributes, how hosts behave. Drawn, not yet built.

The numbers are drawn so that a correct transport must succeed: however a link behaves, no packet is lost so often in
a row that seven retries are not enough, and no acknowledgement takes so long that a timeout is due without a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from softrnic.spec import RNR_TIMER_US, Mtu, QpType
from tests.sim.chance import CERTAIN, seed_chance

NODES = 3
ARENA = 1 << 19  # bytes of memory per node


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """One direction between two nodes. Probabilities per packet, from 0 to 1."""

    loss: float = 0.0
    burst: float = 0.0
    burst_ns: int = 0
    corrupt: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_ns: int = 0
    delay_ns: int = 0
    jitter_ns: int = 0
    ps_per_byte: int = 0
    split: bool = True

    @property
    def loses(self) -> bool:
        """Whether a packet may not arrive."""
        return bool(self.loss or self.burst or self.corrupt)

    @property
    def keeps_order(self) -> bool:
        """Whether packets arrive in order, and once."""
        return not self.reorder and not self.duplicate

    def apply(self, link: np.void, seed: tuple[int, ...]) -> None:
        """Write the plan into a LINK record, and start its random numbers."""
        seed_chance(link["rng"], seed)
        for name in ("loss", "burst", "corrupt", "duplicate", "reorder"):
            link[name] = int(getattr(self, name) * CERTAIN)
        for name in ("burst_ns", "reorder_ns", "delay_ns", "jitter_ns", "ps_per_byte", "split"):
            link[name] = getattr(self, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPlan:
    """A pair of queue pairs; what comes twice is for side 0 and side 1."""

    kind: QpType
    nodes: tuple[int, int]
    mtu: Mtu
    family: int  # index of the GID: IPv4, IPv6, IPv4 in a VLAN
    psn: tuple[int, int]
    rd_atomic: tuple[int, int]  # what each side answers at once
    timeout: int
    min_rnr_timer: int
    send_wr: tuple[int, int]
    recv_wr: tuple[int, int]
    send_sge: int
    recv_sge: int
    inline: int
    sig_all: bool
    srq: tuple[bool, bool]
    messages: tuple[int, int]
    largest: int  # bytes of a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One seed."""

    seed: int
    now: int
    links: tuple[LinkPlan, ...]  # [source * NODES + destination]
    offloads: tuple[tuple[int, int], ...]  # per node: bytes of a super-frame, packets in one
    channels: tuple[ChannelPlan, ...]
    losses: int | None  # no more than so many
    step_ns: int
    holdoff_ns: int
    post_burst: int  # work requests posted at once, at most
    late_receives: bool  # receives are posted bit by bit
    drains: bool  # send queues are taken through SQD
    paged: tuple[bool, ...]  # per node: memory by a page table that never keeps still

    def link(self, src: int, dst: int) -> LinkPlan:
        """The plan of one direction."""
        return self.links[src * NODES + dst]


_WEATHER = ("fair", "lossy", "bursts", "disorder", "duplicates", "damage", "slow", "storm", "ambush")
AMBUSHES = 6  # less than the retries a QP has, so that not even all of them on one packet are too many


def _draw_link(r: Random, weather: str) -> LinkPlan:
    plan: dict[str, float | int | bool] = {
        "delay_ns": r.choice((0, 0, 500, 5_000, 50_000)), "jitter_ns": r.choice((0, 0, 300, 5_000)), "split": True
    }  # fmt: skip
    storm = weather == "storm"
    if weather == "fair":
        plan["split"] = r.random() < 0.3
    if weather == "lossy" or storm:
        plan["loss"] = r.choice((0.001, 0.01, 0.02, 0.03))
    if weather == "bursts" or storm:
        plan["burst"], plan["burst_ns"] = r.choice((0.001, 0.005, 0.01)), r.choice((500, 5_000, 30_000))
    if weather == "disorder" or storm:
        plan["reorder"], plan["reorder_ns"] = r.choice((0.01, 0.05, 0.2)), r.choice((200, 3_000, 40_000))
    if weather == "duplicates" or storm:
        plan["duplicate"] = r.choice((0.01, 0.1, 0.3))
    if weather == "damage" or storm:
        plan["corrupt"] = r.choice((0.001, 0.01, 0.02))
    if weather == "ambush":
        plan["loss"], plan["corrupt"] = r.choice(((0.5, 0.0), (0.2, 0.2), (0.05, 0.0)))
    if weather == "slow":
        plan["ps_per_byte"] = r.choice((80, 800, 8_000, 80_000))  # 100 Gb/s to 100 Mb/s
    if weather != "fair" and r.random() < 0.2:
        plan["split"] = False  # whole super-frames are lost, doubled, delayed
    return LinkPlan(**plan)  # type: ignore[arg-type]


def _slowest_ns(links: tuple[LinkPlan, ...], step_ns: int) -> int:
    """More than any packet and its answer can take without a loss."""
    one_way = max(p.delay_ns + p.jitter_ns + p.reorder_ns + 4 * ARENA * p.ps_per_byte // 1000 for p in links)
    return 4 * (one_way + step_ns) + 2 * max(p.burst_ns for p in links)


def _draw_psn(r: Random) -> int:
    return r.choice((0, r.randrange(1 << 24), (1 << 24) - r.randrange(1, 40), (1 << 23) - r.randrange(1, 40)))


def _draw_timeout(r: Random, slowest_ns: int) -> int:
    least = max(8, (slowest_ns // 4096).bit_length())
    return least + r.randrange(3)


def _draw_channel(r: Random, kind: QpType, timeout: int) -> ChannelPlan:
    mtu = r.choice(list(Mtu))
    most = r.choice((4, 12, 30))
    datagrams = kind == QpType.UD
    largest = mtu.bytes if datagrams else min(r.choice((1, 2, 3, 8, 20)) * mtu.bytes + r.choice((0, 1, 5)), 30_000)
    usable = [code for code in range(32) if RNR_TIMER_US[code] <= 2_000]
    return ChannelPlan(
        kind=kind,
        nodes=(r.randrange(NODES), r.randrange(NODES)),
        mtu=Mtu.MTU_4096 if datagrams else mtu,
        family=r.randrange(3),
        psn=(_draw_psn(r), _draw_psn(r)),
        rd_atomic=(r.choice((1, 1, 2, 3, 4, 16)), r.choice((1, 1, 2, 3, 4, 16))),
        timeout=timeout,
        min_rnr_timer=r.choice(usable),
        send_wr=(r.choice((1, 2, 4, 16, 64)), r.choice((1, 2, 4, 16, 64))),
        recv_wr=(r.choice((1, 2, 4, 16, 64)), r.choice((1, 2, 4, 16, 64))),
        send_sge=r.choice((1, 2, 4)),
        recv_sge=r.choice((1, 2, 4)),
        inline=r.choice((0, 16, 100, 256)),
        sig_all=r.random() < 0.3,
        srq=(r.random() < 0.25, r.random() < 0.25),
        messages=(r.randrange(most + 1), r.randrange(most + 1)),
        largest=largest,
    )


def kinds_of(seed: int) -> tuple[QpType, ...]:
    """The kinds of channels in a seed: of ten, seven are RC alone."""
    others = {0: (QpType.UC,), 1: (QpType.UD,), 2: (QpType.RC, QpType.UC, QpType.UD)}
    return others.get(seed % 10, (QpType.RC,))


def draw_scenario(seed: int) -> Scenario:
    """The scenario of a seed."""
    r = Random(f"scenario {seed}")
    kinds = kinds_of(seed)
    weather = r.choice(_WEATHER)
    mixed = weather != "ambush" and r.random() < 0.3
    links = tuple(_draw_link(r, r.choice(_WEATHER[:-1]) if mixed else weather) for _ in range(NODES * NODES))
    step_ns = r.choice((1, 1, 100, 2_000, 20_000))
    timeout = _draw_timeout(r, _slowest_ns(links, step_ns))
    offload = r.choice(((0, 1), (65_535, 64), (65_535, 64), (20_000, 7)))
    return Scenario(
        seed=seed,
        now=r.randrange(1 << 40),
        links=links,
        offloads=tuple(offload if r.random() < 0.8 else (0, 1) for _ in range(NODES)),
        channels=tuple(_draw_channel(r, r.choice(kinds), timeout) for _ in range(r.randrange(1, 5))),
        losses=AMBUSHES if weather == "ambush" else None,
        step_ns=step_ns,
        holdoff_ns=r.choice((0, 1_000, 50_000)),
        post_burst=r.choice((1, 3, 16)),
        late_receives=r.random() < 0.4,
        drains=r.random() < 0.15,
        # a page that is missing costs a datagram and a UC message
        paged=tuple(kinds == (QpType.RC,) and r.random() < 0.3 for _ in range(NODES)),
    )
