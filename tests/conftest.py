"""What every suite shares: what a test needs of the machine, and the rule about skips.

A test says what it needs by a marker: `privileged` (root, and the kernel features named as its arguments),
`tshark`, `qemu`; or it asks the `require` fixture. What is absent makes it skip. The reason tells two kinds
apart: "machine lacks: ..." for what no installation brings (a kernel built without it, a sandbox that forbids
it), and "needs ..." for what can be had (root, a Debian package). Under SOFTRNIC_CI=1 a marked test that
skips for anything but the first kind fails, so that a missing installation step cannot hide behind a skip.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Generator

import pytest
from hypothesis import settings

CI = os.environ.get("SOFTRNIC_CI") == "1"
GUARDED_MARKERS = ("privileged", "qemu", "tshark")

# Time is no verdict, and a run can be repeated. HYPOTHESIS_PROFILE=explore looks for new examples.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# --- what a machine may lack: each probe returns the reason, or None ----------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_SYSCALLS = {
    "x86_64": {"bpf": 321, "userfaultfd": 323},
    "aarch64": {"bpf": 280, "userfaultfd": 282},
}
_AF_XDP = 44
_BPF_MAP_CREATE, _BPF_MAP_TYPE_ARRAY = 0, 2


def _syscall(name: str, *args: object) -> str | None:
    """Make a system call that returns a descriptor, close that, and return why it failed, if it did."""
    number = _SYSCALLS.get(platform.machine(), {}).get(name)
    if number is None:
        return f"machine lacks: {name} (number unknown on {platform.machine()})"
    fd = _libc.syscall(number, *args)
    if fd < 0:
        return f"machine lacks: {name} ({os.strerror(ctypes.get_errno())})"
    os.close(fd)
    return None


def _root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _netns() -> str | None:
    tried = subprocess.run(["unshare", "--net", "true"], stderr=subprocess.PIPE, text=True, check=False)
    return f"machine lacks: network namespaces ({tried.stderr.strip()})" if tried.returncode else None


def _tun() -> str | None:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"machine lacks: /dev/net/tun ({error.strerror})"
    return None


def _bpf() -> str | None:
    attr = (ctypes.c_uint32 * 16)(_BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    return _syscall("bpf", _BPF_MAP_CREATE, ctypes.byref(attr), ctypes.sizeof(attr))


def _xsk() -> str | None:
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as error:
        return f"machine lacks: AF_XDP ({error.strerror})"
    return None


def _userfaultfd() -> str | None:
    return _syscall("userfaultfd", os.O_CLOEXEC)


def _tshark() -> str | None:
    return None if shutil.which("tshark") else "needs tshark (Debian package tshark)"


def _qemu() -> str | None:
    from tools.vmlib import why_unavailable

    return why_unavailable()


_PROBES: dict[str, tuple[Callable[[], str | None], ...]] = {
    "root": (_root,),
    "netns": (_root, _netns),
    "tun": (_root, _tun),
    "bpf": (_root, _bpf),
    "xsk": (_root, _xsk),
    "userfaultfd": (_root, _userfaultfd),
    "tshark": (_tshark,),
    "qemu": (_qemu,),
}


@functools.cache
def missing(feature: str) -> str | None:
    """Why `feature` cannot be used here, or None when it can. Probed once per run."""
    return next((reason for probe in _PROBES[feature] if (reason := probe())), None)


def require_features(*features: str) -> None:
    """Skip the running test with the first reason, if any of the features is missing."""
    for feature in features:
        if reason := missing(feature):
            pytest.skip(reason)


@pytest.fixture(scope="session")
def require() -> Callable[..., None]:
    """`require("netns", "tun")`: skip, with the reason, where a feature is missing."""
    return require_features


# --- hooks --------------------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("privileged"):
        require_features("root", *marker.args)
    for name in ("tshark", "qemu"):
        if item.get_closest_marker(name):
            require_features(name)


def _excused(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """A skip the machine is to blame for. The reason is the third part of (file, line, 'Skipped: reason')."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ").startswith("machine lacks:")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if CI and report.skipped and not hasattr(report, "wasxfail") and not _excused(report):
        report.outcome = "failed"
        report.longrepr = f"SOFTRNIC_CI: this machine could have run it: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if any(item.get_closest_marker(name) for name in GUARDED_MARKERS):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that skips as a whole does so before its markers are known: it is guarded whatever it holds."""
    report = yield
    _refuse_skip(report)
    return report
