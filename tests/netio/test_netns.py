"""Namespaces: only the calling thread moves, and nothing is left behind, whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netio import netdev, netns
from softrnic.errors import IoError

pytestmark = pytest.mark.privileged("netns")
ROOT = Path(__file__).resolve().parents[2]


def names() -> set[str]:
    """Devices of the calling thread's namespace."""
    return {name for _, name in socket.if_nameindex()}


def inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_a_new_namespace_has_a_loopback_device_only() -> None:
    with netns.namespace() as ns, ns.entered():
        assert names() >= {"lo"}
        assert "eth0" not in names()
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())


def test_only_the_calling_thread_enters() -> None:
    """Another thread stays where it was; one that is started inside starts there."""
    outside = inode()
    with netns.namespace() as ns, ThreadPoolExecutor(1) as other:
        assert other.submit(inode).result() == outside
        with ns.entered():
            inside = inode()
            assert other.submit(inode).result() == outside
            with ThreadPoolExecutor(1) as started_inside:
                assert started_inside.submit(inode).result() == inside
    assert inode() == outside != inside


def test_namespaces_nest() -> None:
    outside = inode()
    with netns.namespace() as a, netns.namespace() as b, a.entered():
        in_a = inode()
        with b.entered():
            assert inode() not in (in_a, outside)
        assert inode() == in_a
    assert inode() == outside


def fail_inside(kept: netns.Namespace) -> None:
    with netns.namespace() as ns, ns.entered():
        netns.veth(kept, "kept0", ns, "gone0")
        raise KeyError


def test_an_exception_leads_back_out_and_leaves_nothing() -> None:
    outside = inode()
    fds = len(os.listdir("/proc/self/fd"))
    with netns.namespace() as kept:
        with pytest.raises(KeyError):
            fail_inside(kept)
        assert inode() == outside
        gone(kept, "kept0")
    assert len(os.listdir("/proc/self/fd")) == fds


def gone(ns: netns.Namespace, ifname: str) -> None:
    """A namespace dies asynchronously in the kernel: read link messages until the device is deleted."""
    with ns.entered(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
        events.bind((0, 1))  # RTMGRP_LINK
        events.settimeout(30)
        while ifname in names():
            events.recv(65536)


def test_killing_the_process_leaves_nothing() -> None:
    """kill -9 of a process whose namespace holds one end of a veth pair: the other end goes too."""
    code = (
        "import sys\n"
        "from netio import netns\n"
        "with netns.namespace() as ns:\n"
        "    netns.veth(netns.current(), 'victim0', ns, 'eth0')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with netns.namespace() as ours:
        with ours.entered():
            child = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
            )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            with ours.entered():
                assert "victim0" in names()
            child.send_signal(signal.SIGKILL)
        gone(ours, "victim0")


def test_veth_bridge_and_removal() -> None:
    with netns.namespace() as a, netns.namespace() as b:
        netns.veth(a, "v0", b, "eth0", mtu=1400)
        netns.veth(a, "v1", b, "eth1", mtu=1400)
        netns.bridge(a, "br0", ["v0", "v1"])
        with a.entered():
            assert names() >= {"br0", "v0", "v1"}
            assert (netdev.mtu("v0"), netdev.mtu("br0")) == (1400, 1400)
        netns.remove(a, "v1")
        with b.entered():
            assert "eth1" not in names()
        with pytest.raises(IoError, match="no network device v1"):
            netns.remove(a, "v1")


def test_features_are_switched_and_named() -> None:
    with netns.namespace() as a, netns.namespace() as b:
        netns.veth(a, "v0", b, "eth0")
        with a.entered():
            assert netdev.set_feature("v0", "tx-udp-segmentation", False)
            assert not netdev.set_feature("v0", "tx-udp-segmentation", True)
            assert netdev.set_feature("v0", "tx-udp-segmentation", True)
            with pytest.raises(IoError, match="offload tx-perfect"):
                netdev.set_feature("v0", "tx-perfect", True)
