"""Compiling ahead: nothing is left to compile afterwards, and what the cache has costs no process."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from softrnic import engine
from softrnic.control import pump, warm
from softrnic.control.pair import open_pair
from softrnic.verbs import RecvWr, SendWr, WrOpcode

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    warm.prepare()


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("starts a process")


def test_second_time_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert warm.compiled()
    warm.prepare()


def test_nothing_is_left_to_compile() -> None:
    """A message over the compiled pump adds no signature to any kernel of the data path."""
    kernels: list[Any] = [pump.run_pump, engine._receive, engine._transmit, engine._on_timer, engine.receive_burst]
    before = [list(kernel.signatures) for kernel in kernels]
    assert all(before[:4])
    with open_pair() as (a, b):
        region = b.pd.reg_mr(bytearray(64))
        b.qp.post_recv(RecvWr([region.sge()]))
        a.qp.post_send(SendWr(WrOpcode.SEND, inline=b"x"))
        assert b.cq.wait(30)[0].ok
    assert [list(kernel.signatures) for kernel in kernels] == before


def test_an_empty_cache_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(warm, "cache_dir", lambda file: str(tmp_path))
    assert not warm.compiled()


def test_children_that_fail_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process compiles what they could not."""
    monkeypatch.setattr(warm, "compiled", lambda: False)
    monkeypatch.setattr("sys.executable", "/bin/false")
    warm.prepare()


def test_children_end_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while waiting for one ends all."""
    children: list[subprocess.Popen[bytes]] = []

    class Sleeper(subprocess.Popen):  # type: ignore[type-arg]
        interrupted = False

        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__(["sleep", "1000"], **options)
            children.append(self)

        def wait(self, timeout: float | None = None) -> int:
            if not Sleeper.interrupted:
                Sleeper.interrupted = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Sleeper)
    with pytest.raises(KeyboardInterrupt):
        warm._compile_apart(warm.receive, warm.transmit)
    assert [child.returncode for child in children] == [-9, -9]
