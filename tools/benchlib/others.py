"""What a user would pick instead, over a veth pair of the same MTU, measured in the same run: TCP by iperf3."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

from netio import netns

SECONDS = 3


def tcp_gbps() -> float | None:
    """One TCP stream between two namespaces, Gb/s; None without iperf3."""
    iperf = shutil.which("iperf3")
    if iperf is None:
        return None
    with netns.namespace() as a, netns.namespace() as b:
        netns.veth(a, "eth0", b, "eth0", mtu=4200)
        netns.add_address(a, "eth0", "10.9.0.1/24")
        netns.add_address(b, "eth0", "10.9.0.2/24")
        with b.entered():
            server = subprocess.Popen([iperf, "-s", "-1", "-A", "1"], stdout=subprocess.DEVNULL)
        try:
            with a.entered():
                for _ in range(50):
                    done = subprocess.run(
                        [iperf, "-c", "10.9.0.2", "-t", str(SECONDS), "-A", "0", "-J"], capture_output=True, check=False
                    )
                    if done.returncode == 0:
                        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
                    time.sleep(0.1)
        finally:
            server.kill()
            server.wait()
    return None
