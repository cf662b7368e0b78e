"""The Debian tree that QEMU, the guest's kernel and the guest's programs are taken from.

Decides which packages of which Debian release those are, and how they are fetched: mmdebstrap extracts them
and configures nothing, so no maintainer script runs and nothing is chrooted into. Programs of the tree run
on this machine through the tree's own dynamic loader. Knows nothing of what a guest does with them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from . import cache
from .apt import debian_mirror
from .errors import GuestError, UnavailableError

SUITE = "trixie"
# Debian 13's own QEMU, 10.0, has no vfio-user-pci.
BACKPORTS = f"{SUITE}-backports"
FROM_BACKPORTS = "qemu-* seabios ipxe-qemu"
PACKAGES = (
    "qemu-system-x86",
    "linux-image-amd64",
    "zstd",  # unpacks the kernel
    # Not busybox-static: that one runs its own applets (ip!) where a program is asked for by name.
    "busybox",
    "dash",
    "iproute2",
    "ethtool",
    "tcpdump",
    "rdma-core",
    "ibverbs-utils",
    "rdmacm-utils",
    "perftest",
)
# Nothing reads these at run time.
PRUNED = ("doc", "info", "locale", "man")

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
QEMU = "usr/bin/qemu-system-x86_64"

BUILD_TIMEOUT_S = 900
PROBE_TIMEOUT_S = 20


class Tree:
    """A directory that holds an extracted Debian system, and how to run what is in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, path: str) -> Path:
        """The file at `path` in the tree, or an error that names it."""
        found = self.root / path
        if not found.is_file():
            raise GuestError(f"the Debian tree {self.root} lacks {path}")
        return found

    def command(self, program: str, *arguments: str) -> list[str]:
        """The argument vector that runs `program`, a path in the tree, on this machine."""
        return [*self._loader(), str(self.find(program)), *arguments]

    def qemu(self) -> list[str]:
        """How every QEMU command line begins."""
        share = self.root / "usr/share"
        return self.command(QEMU, "-L", str(share / "qemu"), "-L", str(share / "seabios"))

    def libraries(self, program: str) -> list[str]:
        """The shared objects that `program`, a path in the tree, is linked to, as paths in the tree."""
        listing = _run([*self._loader(), "--list", str(self.find(program))])
        paths = (Path(path) for path in re.findall(r"=> (/\S+)", listing))
        return [str(path.relative_to(self.root)) for path in paths]

    def _loader(self) -> list[str]:
        return [str(self.find(LOADER)), "--library-path", str(self.root / LIBRARIES)]


def key() -> str:
    """Changes with all that decides what is in the tree, but not with new releases of the packages."""
    return cache.content_key(Path(__file__).read_bytes())


def get() -> Tree:
    """The tree from the cache. Where there is none it is built: as root, 100 MB from the mirror."""
    return Tree(cache.entry("tree", key(), _build))


def check_machine() -> None:
    """Raise UnavailableError unless a tree can be built and run here. The network is not asked."""
    if platform.machine() != "x86_64":
        raise UnavailableError(f"machine lacks: an x86-64 processor (it is {platform.machine()})")
    if os.geteuid() != 0:
        raise UnavailableError("needs root")


def _build(target: Path) -> None:
    check_machine()
    mirror = debian_mirror()
    for suite in (SUITE, BACKPORTS):
        _probe(f"{mirror.rstrip('/')}/dists/{suite}/InRelease", suite)
    _install_mmdebstrap()
    pin = f"Package: {FROM_BACKPORTS}\\nPin: release n={BACKPORTS}\\nPin-Priority: 990\\n"
    _run(
        [
            *("mmdebstrap", "--quiet", "--variant=extract", "--architectures=amd64"),
            '--aptopt=APT::Install-Recommends "false"',
            f"--setup-hook=printf '{pin}' > \"$1/etc/apt/preferences.d/backports\"",
            f"--include={','.join(PACKAGES)}",
            *(SUITE, str(target)),
            *(f"deb {mirror} {suite} main" for suite in (SUITE, BACKPORTS)),
        ]
    )
    for name in PRUNED:
        shutil.rmtree(target / "usr/share" / name, ignore_errors=True)


def _probe(url: str, suite: str) -> None:
    """Raise UnavailableError if the mirror is out of reach or lacks the suite. Only HTTP is asked."""
    if not url.startswith(("http:", "https:")):
        return
    try:
        urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        raise UnavailableError(f"machine lacks: {suite} on its Debian mirror (HTTP {error.code})") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(f"machine lacks: a Debian mirror within reach ({reason})") from error


def _install_mmdebstrap() -> None:
    if shutil.which("mmdebstrap"):
        return
    apt = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300")
    try:
        _run([*apt, "update"])
        _run([*apt, "install", "--no-install-recommends", "mmdebstrap"])
    except GuestError as error:
        raise UnavailableError(f"machine lacks: mmdebstrap ({error})") from error


def _run(command: Sequence[str]) -> str:
    """What a command writes; where it fails, an error with the lines that say why."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{command[0]}: not done after {BUILD_TIMEOUT_S} s") from error
    except FileNotFoundError as error:
        raise GuestError(f"{command[0]}: not found") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).splitlines()
        told = [line for line in lines if line.startswith("E:")] or lines[-3:]
        raise GuestError(f"{command[0]}: exit status {done.returncode}: {' '.join(told)}")
    return done.stdout
