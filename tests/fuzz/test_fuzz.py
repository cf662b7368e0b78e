"""The short form of tools/fuzz: frames no peer would send, with a valid ICRC, into QPs of every type and state."""

from __future__ import annotations

from typing import Any

import pytest

from softrnic.jit import JIT
from softrnic.mem import mr
from softrnic.qp import answer, responder
from softrnic.verbs import QpState, QpType
from tests.fuzz.campaign import Result, fuzz, make_epoch
from tests.fuzz.drive import run
from tests.fuzz.world import draw_setting
from tests.sim.pages import small_pages

KINDS = [QpType.RC, QpType.UC, QpType.UD, QpType.GSI]
FRAMES, EPOCH_FRAMES = (200_000, 10_000) if JIT else (1_500, 100)


def fuzzed(kind: QpType, seed: int, frames: int = FRAMES) -> Result:
    with small_pages():
        return fuzz(kind, seed, frames, epoch_frames=EPOCH_FRAMES)


@pytest.mark.timeout(600)  # the first one compiles
@pytest.mark.parametrize("kind", KINDS)
def test_no_finding(kind: QpType) -> None:
    """And the campaign was worth its time: everything that can happen to such a QP has happened."""
    result = fuzzed(kind, seed=1)
    assert result.finding is None, result.finding
    assert result.frames >= FRAMES
    assert result.completions["recv SUCCESS"] > 0
    assert result.counters["drop_bth"] > 0
    if kind == QpType.RC:
        assert {"RNR NAK", "ACKNOWLEDGE", "READ_RESPONSE_ONLY", "ATOMIC_ACKNOWLEDGE"} <= set(+result.answers)
        assert {"NAK PSN_SEQUENCE_ERROR", "NAK INVALID_REQUEST", "NAK REMOTE_ACCESS_ERROR"} <= set(result.answers)


@pytest.mark.jit_only
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_million(kind: QpType) -> None:
    """The long form; `tools/fuzz --frames 10000000` says more."""
    result = fuzzed(kind, seed=2, frames=10_000_000)
    assert result.finding is None, result.finding


def test_a_seed_repeats() -> None:
    """The same frames, the same answers."""
    one, other = (fuzzed(QpType.RC, 5, FRAMES // 10) for _ in range(2))
    assert (one.counters, one.answers, one.completions) == (other.counters, other.answers, other.completions)


def test_every_state_has_its_turn() -> None:
    """And each with and without an SRQ, over IPv4 and IPv6."""
    for kind in KINDS:
        settings = [draw_setting(kind, 1, number) for number in range(400)]
        states = set(QpState) - ({QpState.SQE} if kind == QpType.RC else set())
        assert {s.state for s in settings} == states
        families = {(state, family) for state in states for family in (0, 1)}
        assert families == {(s.state, s.family) for s in settings}
        if kind != QpType.GSI:
            assert {(s.state, s.srq) for s in settings} == {(state, srq) for state in states for srq in (True, False)}


# --- the judge judges: engines with one thing wrong ---


def _covers_one_more(record: Any, va: int, length: int) -> bool:
    offset = va - int(record["iova"])
    return length >= 0 and offset >= -1 and offset + length <= int(record["length"]) + 1


def _no_error(eng: Any, qp: Any, qp_index: int, status: int, event: int) -> None:
    """A fatal NAK that leaves the QP alive."""


BUGS = {
    "a region one byte too long": (mr, "_covers", _covers_one_more),
    "a fatal NAK without the error state": (responder, "_fatal", _no_error),
    "any opcode after any other": (responder, "check_op_seq", lambda qp, pkt: responder.OK),
    "credits for receives that are not there": (answer, "credit_syndrome", lambda qp: 30),
    "any PSN is the expected one": (responder, "check_psn", lambda eng, qp, pkt: responder.OK),
    "any length will do": (responder, "check_length", lambda buf, qp, pkt: responder.OK),
    "rights are not asked for": (responder, "check_op_valid", lambda qp, pkt: responder.OK),
}


@pytest.mark.skipif(JIT, reason="compiled kernels cannot be replaced one by one")
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, broken = BUGS[bug]
    monkeypatch.setattr(module, name, broken)
    assert fuzzed(QpType.RC, seed=1, frames=5_000).finding is not None


def test_a_stray_byte_is_found() -> None:
    """A byte that changes outside of everything registered."""
    epoch = make_epoch(QpType.RC, 1, 0)
    at = int(epoch.world.canaries[-1]["offset"])
    epoch.arena.bytes[at] ^= 1
    assert run(epoch.world, 100) != 0
