"""A short run of the simulator, and that it does what it says: repeats itself, makes trouble, notices trouble."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from softrnic.jit import JIT
from tests.sim.pages import small_pages
from tests.sim.scenario import draw_scenario
from tests.sim.simulation import Result, Simulation, simulate
from tests.sim.trace import packet_lines, qp_lines, scenario_lines

SEEDS = 200 if JIT else 10


@pytest.fixture(autouse=True, scope="module")
def _small_pages() -> Iterator[None]:
    with small_pages():
        yield


def test_seeds() -> None:
    """Every message once, in order, byte-exact; no stray byte; nothing left over. tools/sim runs more."""
    failed = {seed: result.complaint for seed in range(SEEDS) if (result := simulate(seed)).complaint}
    assert failed == {}, "tools/sim --seed N --trace shows one in detail"


def outcome(result: Result) -> tuple[object, ...]:
    return result.complaint, result.digest, result.virtual_ns, result.wire, result.counters


def test_a_seed_repeats_itself() -> None:
    """Whatever ran before, and whether or not anybody watches."""
    first = [outcome(simulate(seed)) for seed in (3, 7)]
    assert [outcome(simulate(seed, logging=True)) for seed in (7, 3)] == first[::-1]


@pytest.mark.jit_only
def test_the_wire_makes_trouble() -> None:
    """The seeds above lose, damage, double and overtake, and the engine answers by every means it has."""
    results = [simulate(seed) for seed in range(SEEDS)]
    for name in ("lost", "corrupted", "duplicated", "reordered"):
        assert sum(r.wire[name] for r in results) > 0, name
    for name in (
        "DUPLICATE_REQUEST", "OUT_OF_SEQ_REQUEST", "RCVD_SEQ_ERR", "RCVD_RNR_ERR", "DROP_ICRC", "RETRANSMITTED_PKTS",
    ):  # fmt: skip
        assert sum(r.counters[name] for r in results) > 0, name


@pytest.mark.parametrize("seed", [3, 5])
def test_a_stray_byte_is_noticed(seed: int) -> None:
    simulation = Simulation(draw_scenario(seed))
    simulation.hosts[1].arena[5] ^= 1
    assert simulation.run().complaint == "node 1: memory differs at [5]"


def test_a_lost_completion_is_noticed() -> None:
    simulation = Simulation(draw_scenario(7))
    stream = next(s for s in simulation.streams if s.wrs)
    for wr in stream.wrs:
        wr.wr_id += 1
    complaint = simulation.run().complaint
    assert complaint is not None
    assert "expected Outgoing" in complaint


def test_a_seed_in_words() -> None:
    simulation = Simulation(draw_scenario(1), logging=True)
    result = simulation.run()
    lines = [*scenario_lines(result), *qp_lines(simulation), *packet_lines(result.log, result.scenario.now)]
    assert any("RC Acknowledge" in line for line in lines) or any("UD" in line for line in lines)
    assert not any("ICRC wrong" in line for line in lines if result.wire["corrupted"] == 0)
