"""A guest with a soft-RoCE device on a segment: what interoperability tests talk to.

Joins the parts: an image, a tap on a segment, a QEMU, a shell in the guest. Decides what the guest's
devices are called and how its RDMA device is looked at. What runs in it is the caller's business.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from . import initramfs
from .cpio import Archive
from .errors import CommandError, CommandTimeoutError, GuestDeadError, GuestError
from .initramfs import Image
from .machine import Machine
from .qmp import Qmp
from .segment import Segment
from .shell import DEFAULT_TIMEOUT_S, Process, Result, Shell

PORT = "/sys/class/infiniband/rxe0/ports/1"
GIDS_SHOWN = 16

DEFAULT_MTU = 1500
DEFAULT_MEMORY_MB = 512
BOOT_TIMEOUT_S = 90.0


class Guest:
    """A virtual machine whose eth0 is on `segment`, and whose soft-RoCE device rxe0 is over that.

    As a context manager it is booted, and ended whatever it is doing:

        with Segment.create() as segment, Guest(segment, ["10.9.0.1/24", "fd00:9::1/64"]) as guest:
            print(guest.check("ibv_devinfo"))
    """

    def __init__(
        self,
        segment: Segment,
        addresses: Sequence[str],
        *,
        mtu: int = DEFAULT_MTU,
        mac: str | None = None,
        memory_mb: int = DEFAULT_MEMORY_MB,
        image: Image | None = None,
        files: Mapping[str, bytes] | None = None,
        nic: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        terminal: bool = False,
    ) -> None:
        """Nothing runs until `start`.

        addresses: IPv4 and IPv6, each with its prefix length.
        mtu: eth0's. The RDMA device's follows from it (1500: 1024, 9000: 4096).
        mac: random unless given.
        image: the soft-RoCE image unless given; it is built if need be.
        files: by path, to be in the guest's file system, executable.
        nic: properties of QEMU's virtio-net-pci, as {"guest_uso4": "off"}.
        arguments: more arguments of QEMU.
        terminal: the terminal of this process is the guest's console, with a shell.
        """
        self.addresses = tuple(ipaddress.ip_interface(address) for address in addresses)
        self.mtu = mtu
        self.mac = mac or "52:54:00:" + secrets.token_bytes(3).hex(":")
        self._segment = segment
        self._memory_mb = memory_mb
        self._image = image
        self._files = dict(files or {})
        self._nic = {"mac": self.mac, "host_mtu": str(mtu), "romfile": "", **(nic or {})}
        self._arguments = tuple(arguments)
        self._terminal = terminal
        self._machine: Machine | None = None
        self._shell: Shell | None = None

    # --- its life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start QEMU unless it runs, and do not wait for the guest."""
        if self._shell:
            return
        image = self._image or initramfs.get()
        with ExitStack() as on_failure, ExitStack() as handed_over:
            shell = Shell(lambda: self.machine.last_words)
            on_failure.callback(shell.close)
            tap = self._segment.open_tap(self.mtu)
            handed_over.callback(os.close, tap.fd)
            fds, unpacked = [tap.fd, *shell.fds], None
            if self._files:
                files = _with_files(image.initramfs, self._files)
                handed_over.callback(os.close, files)
                fds.append(files)
                unpacked = f"/proc/self/fd/{files}"
            self._machine = Machine(
                image,
                memory_mb=self._memory_mb,
                parameters=self._parameters(),
                arguments=[*self._nic_arguments(tap.fd), *shell.arguments(), *self._arguments],
                fds=fds,
                initramfs=unpacked,
                terminal=self._terminal,
            )
            on_failure.pop_all()
        shell.handed_over()
        self._shell = shell

    def wait_ready(self, timeout: float = BOOT_TIMEOUT_S) -> None:
        """Wait until the guest has booted, and its RDMA device is active with a GID for each address."""
        try:
            self.shell.wait_ready(timeout)
        except CommandTimeoutError as error:
            raise CommandTimeoutError(f"{error}: {self.machine.last_words}") from error

    def close(self) -> None:
        """End it at once. Its console can still be read."""
        if self._shell:
            self.machine.close()
            self._shell.close()
            self._shell = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- commands in it -------------------------------------------------------------------------------------

    def run(self, command: str, timeout: float = DEFAULT_TIMEOUT_S) -> Result:
        """Run a command line of sh to its end: (rc, stdout, stderr). What it leaves running is killed."""
        return self.shell.start(command).wait(timeout)

    def check(self, command: str, timeout: float = DEFAULT_TIMEOUT_S) -> str:
        """What the command writes to its standard output. CommandError if its exit status is not 0."""
        result = self.run(command, timeout)
        if result.rc != 0:
            said = result.stderr.strip() or result.stdout.strip()
            raise CommandError(f"{command!r} exited {result.rc}: {said}")
        return result.stdout

    def spawn(self, command: str) -> Process:
        """Start a command line of sh and go on. Seven may run at a time, those of `run` included."""
        return self.shell.start(command)

    def wait_until(self, command: str, process: Process, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Repeat a command until its exit status is 0. CommandError if `process` ends before."""
        ready = f"until {{ {command}\n}} >/dev/null 2>&1; do kill -0 {process.pid} || exit; sleep 0.02; done"
        if self.run(ready, timeout).rc != 0:
            raise CommandError(f"{process.command!r} ended too early: {process.wait()}")

    def wait_listening(self, server: Process, port: int = 18515, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until a TCP port is listened on. The default is that of ibv_*_pingpong and of perftest."""
        # Local address, remote address, state; 0A is TCP_LISTEN.
        sockets = "cat /proc/net/tcp /proc/net/tcp6"
        self.wait_until(f"{sockets} | grep ':{port:04X} 0*:0000 0A '", server, timeout)

    def wait_cm_listening(self, server: Process, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until the RDMA connection manager listens, as for rping -s, ucmatose and rdma_server."""
        self.wait_until("rdma resource show cm_id | grep 'state LISTEN'", server, timeout)

    # --- its RDMA device ------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """The hw_counters of rxe0, under rxe's names."""
        lines = self.check(f"cd {PORT}/hw_counters && grep -H . *").splitlines()
        return {name: int(value) for name, _, value in (line.partition(":") for line in lines)}

    def gids(self) -> dict[int, ipaddress.IPv6Address]:
        """{index: GID}, of those in use. An IPv4 address is in its mapped form, ::ffff:10.9.0.1."""
        listed = self.check(f"cd {PORT}/gids && for i in $(seq 0 {GIDS_SHOWN - 1}); do cat $i; done")
        gids = (ipaddress.IPv6Address(line) for line in listed.split())
        return {index: gid for index, gid in enumerate(gids) if not gid.is_unspecified}

    def gid_index(self, address: str) -> int:
        """The index of the GID that stands for an address: what options -g and -x want."""
        ip = ipaddress.ip_address(address)
        gid = ip if isinstance(ip, ipaddress.IPv6Address) else ipaddress.IPv6Address(f"::ffff:{ip}")
        for index, found in self.gids().items():
            if found == gid:
                return index
        raise GuestError(f"rxe0 has no GID for {address}")

    # --- QEMU -----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.machine.pid

    @property
    def console(self) -> str:
        """All that the guest wrote to its console, kernel warnings among it."""
        return self.machine.console

    @property
    def qmp(self) -> Qmp:
        return self.machine.qmp

    def pause(self) -> None:
        """Stop its processor: a peer that hangs. Frames pile up in its tap, and are then dropped."""
        self.qmp.execute("stop")

    def resume(self) -> None:
        self.qmp.execute("cont")

    @property
    def machine(self) -> Machine:
        if not self._machine:
            raise GuestDeadError("the guest has not been started")
        return self._machine

    @property
    def shell(self) -> Shell:
        if not self._shell:
            raise GuestDeadError("the guest does not run")
        return self._shell

    def _nic_arguments(self, tap: int) -> list[str]:
        properties = "".join(f",{name}={value}" for name, value in self._nic.items())
        return ["-netdev", f"tap,id=net,fd={tap}", "-device", f"virtio-net-pci,netdev=net{properties}"]

    def _parameters(self) -> str:
        addresses = ",".join(str(address) for address in self.addresses)
        return f"guest.addresses={addresses}" + (" guest.terminal" if self._terminal else "")


@contextmanager
def booted(*guests: Guest) -> Iterator[None]:
    """Several guests, which boot at the same time."""
    with ExitStack() as stack:
        for guest in guests:
            stack.callback(guest.close)
            guest.start()
        for guest in guests:
            guest.wait_ready()
        yield


def _with_files(base: Path, files: Mapping[str, bytes]) -> int:
    """An anonymous file that holds an initramfs and, behind it, an archive of files."""
    archive = Archive()
    for path, data in files.items():
        archive.file(path.lstrip("/"), data, mode=0o755)
    fd = os.memfd_create("initramfs")
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(base.read_bytes() + archive.finish())
    return fd
