"""Run a command that must not outlive the process that asked for it.

    python -IS guard.py PARENT REPORT COMMAND...

PARENT is the process id of whoever starts this; the command's own is written to descriptor REPORT. When the
parent is gone, in whatever way, or this is asked to end, it kills the command. When this itself is killed,
the kernel kills the command. PR_SET_PDEATHSIG alone would not do: it goes by the thread of the parent, and
the parent may be gone before it is set. This file is run, never imported, and uses no threads: so it may
fork.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, report: int, command: list[str]) -> int:
    """The command's exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    watch = os.pidfd_open(parent)
    if os.getppid() != parent:  # gone before the watch began, which may be of a stranger
        return 0
    libc, guard = ctypes.CDLL(None), os.getpid()
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:
            os.execvp(command[0], command)
        os._exit(1)
    try:
        os.write(report, b"%d\n" % child)
        ended = os.pidfd_open(child)
        close_all_but(watch, ended)
        poll = select.poll()
        for fd in (watch, ended):
            poll.register(fd, select.POLLIN)
        poll.poll()
    finally:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) & 0xFF


def close_all_but(*kept: int) -> None:
    """What was handed down is the command's alone: whoever has the other ends must see when it ends."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # that of the listing is gone
                os.close(fd)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
