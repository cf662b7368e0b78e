"""Commands in a guest, over virtio-serial: start them, wait for them, signal them, read what they write.

Decides the protocol with inside/agent, which describes it. A channel is three ports and carries one command
at a time; there are CHANNELS of them, and the last is kept for signals. Knows nothing of RDMA, of networks,
or of how QEMU is started.
"""

from __future__ import annotations

import queue
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from .errors import CommandError, CommandTimeoutError, GuestDeadError
from .output import Output

CHANNELS = 8
PORTS_PER_CHANNEL = 3
DEFAULT_TIMEOUT_S = 60.0
# Within this, an emulated guest on a busy machine takes a command, and ends one that was killed.
ANSWER_TIMEOUT_S = 30.0
# Nothing tells when output arrives: how often wait_output looks.
LOOK_INTERVAL_S = 0.01


class Result(NamedTuple):
    """How a command ended."""

    rc: int
    """Its exit status, or 128 + N if signal N ended it."""
    stdout: str
    stderr: str


class Channel:
    """Our ends of three ports. Their numbers follow from the channel's, which counts from 1."""

    def __init__(self, number: int, last_words: Callable[[], str]) -> None:
        self.stdout, self.stderr = Output(f"stdout{number}"), Output(f"stderr{number}")
        self._first_port = PORTS_PER_CHANNEL * (number - 1) + 1
        self._last_words = last_words
        self._control, self._theirs = socket.socketpair()
        self._received = b""

    @property
    def fds(self) -> tuple[int, ...]:
        """What QEMU has to inherit."""
        return self._theirs.fileno(), self.stdout.fd, self.stderr.fd

    def arguments(self) -> list[str]:
        """QEMU's arguments for the three ports."""
        files = (f"file,path={output.path}" for output in (self.stdout, self.stderr))
        words = []
        for port, backend in enumerate((f"socket,fd={self._theirs.fileno()}", *files), self._first_port):
            words += ["-chardev", f"{backend},id=port{port}"]
            words += ["-device", f"virtserialport,chardev=port{port},nr={port}"]
        return words

    def handed_over(self) -> None:
        """QEMU has its end. Once ours of that is closed, the death of QEMU shows as the end of the stream."""
        self._theirs.close()

    def send(self, command: str) -> None:
        line = command.replace("\\", "\\\\").replace("\n", "\\n")
        try:
            self._control.sendall(line.encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._dead() from error

    def answer(self, word: str, deadline: float) -> str | None:
        """What the agent's next line says after `word`; None if there is no line by then (time.monotonic)."""
        while b"\n" not in self._received:
            wait = max(0.0, deadline - time.monotonic())
            if not select.select([self._control], [], [], wait)[0]:
                return None
            try:
                data = self._control.recv(4096)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._dead()
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        found, _, value = line.decode(errors="replace").partition(" ")
        if found != word:
            raise GuestDeadError(f"the guest's agent said {line!r} where {word!r} was due")
        return value

    def close(self) -> None:
        self._theirs.close()
        self._control.close()
        self.stdout.close()
        self.stderr.close()

    def _dead(self) -> GuestDeadError:
        return GuestDeadError(f"the guest is gone: {self._last_words()}")


class Process:
    """A command in the guest. As a context manager, it kills the command unless that has ended."""

    def __init__(self, shell: Shell, channel: Channel, command: str) -> None:
        """Shell.start makes one."""
        self.command = command
        self._shell = shell
        self._channel = channel
        self._starts = channel.stdout.size, channel.stderr.size
        self._result: Result | None = None
        channel.send(command)
        pid = channel.answer("pid", time.monotonic() + ANSWER_TIMEOUT_S)
        if pid is None:
            raise CommandTimeoutError(f"the guest did not take {command!r} within {ANSWER_TIMEOUT_S:g} s")
        self.pid = int(pid)
        """In the guest; the number of its process group and session, too."""

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._result.stdout if self._result else self._channel.stdout.text(self._starts[0])

    @property
    def stderr(self) -> str:
        return self._result.stderr if self._result else self._channel.stderr.text(self._starts[1])

    def poll(self) -> Result | None:
        """How it ended, if it has."""
        return self._ended_by(time.monotonic())

    def wait(self, timeout: float = DEFAULT_TIMEOUT_S) -> Result:
        """How it ended, once it has. After `timeout` seconds it is killed, and CommandTimeoutError raised."""
        result = self._ended_by(time.monotonic() + timeout)
        if result is None:
            self.kill(signal.SIGKILL)
            self._ended_by(time.monotonic() + ANSWER_TIMEOUT_S)
            raise CommandTimeoutError(f"{self.command!r} did not end within {timeout:g} s{self._said()}")
        return result

    def wait_output(self, pattern: str, timeout: float = DEFAULT_TIMEOUT_S) -> re.Match[str]:
        """The first match of a regular expression in its standard output, once there is one."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self._ended_by(min(deadline, time.monotonic() + LOOK_INTERVAL_S))
            if match := re.search(pattern, self.stdout, re.MULTILINE):
                return match
            missed = f"{self.command!r} did not write {pattern!r}"
            if ended:
                raise CommandError(f"{missed} and exited {ended.rc}{self._said()}")
            if time.monotonic() >= deadline:
                raise CommandTimeoutError(f"{missed} within {timeout:g} s{self._said()}")

    def kill(self, signum: int = signal.SIGTERM) -> None:
        """Signal it and all it has started, unless it has ended."""
        if self.poll() is None:
            self._shell.signal(self.pid, signum)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, GuestDeadError):
            self.kill(signal.SIGKILL)
            self.wait(ANSWER_TIMEOUT_S)

    def _ended_by(self, deadline: float) -> Result | None:
        if self._result is None:
            status = self._channel.answer("exit", deadline)
            if status is not None:
                self._result = Result(int(status), self.stdout, self.stderr)
                self._shell.release(self._channel)
        return self._result

    def _said(self) -> str:
        return "".join(f"\n{text.strip()}" for text in (self.stdout, self.stderr) if text.strip())


class Shell:
    """The host's ends of all channels. Threads may start commands at the same time."""

    def __init__(self, last_words: Callable[[], str]) -> None:
        """`last_words` is asked why, when the guest is found dead."""
        self._channels = [Channel(number, last_words) for number in range(1, CHANNELS + 1)]
        *commands, self._signals = self._channels
        self._free: queue.LifoQueue[Channel] = queue.LifoQueue()
        for channel in reversed(commands):
            self.release(channel)
        self._signalling = threading.Lock()

    @property
    def fds(self) -> list[int]:
        """What QEMU has to inherit."""
        return [fd for channel in self._channels for fd in channel.fds]

    def arguments(self) -> list[str]:
        """QEMU's arguments for the ports."""
        ports = [word for channel in self._channels for word in channel.arguments()]
        # Without ioeventfd, QEMU passes on what is written before the guest goes on. With it, the ports would be
        # served in no order, and "exit" could overtake output.
        device = f"virtio-serial-pci,ioeventfd=off,max_ports={PORTS_PER_CHANNEL * CHANNELS + 1}"
        return ["-device", device, *ports]

    def handed_over(self) -> None:
        """To be called once QEMU runs."""
        for channel in self._channels:
            channel.handed_over()

    def wait_ready(self, timeout: float) -> None:
        """Wait for all agents, which start when the guest has been set up."""
        deadline = time.monotonic() + timeout
        for channel in self._channels:
            if channel.answer("ready", deadline) is None:
                raise CommandTimeoutError(f"the guest has not booted within {timeout:g} s")

    def start(self, command: str) -> Process:
        """Start a command line of sh."""
        try:
            channel = self._free.get_nowait()
        except queue.Empty:
            raise CommandError(f"{CHANNELS - 1} commands run in the guest already") from None
        return Process(self, channel, command)

    def release(self, channel: Channel) -> None:
        """The channel's command has ended."""
        self._free.put(channel)

    def signal(self, group: int, signum: int) -> None:
        """Signal a process group."""
        with self._signalling:
            self._signals.send(f"kill -s {signum} -- -{group}")
            deadline = time.monotonic() + ANSWER_TIMEOUT_S
            if any(self._signals.answer(word, deadline) is None for word in ("pid", "exit")):
                raise CommandTimeoutError(f"the guest did not take signal {signum}")

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
