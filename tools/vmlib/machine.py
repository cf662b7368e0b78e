"""One QEMU process: the arguments every guest has, its console, its QMP socket, and its end.

Decides how QEMU is started (emulation, the kernel entered directly, no names in the file system:
descriptors are handed over) and that it cannot outlive this process. Which devices it has is the caller's
business, and so is what the guest does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import GuestDeadError
from .initramfs import Image
from .output import Output
from .qmp import Qmp

GUARD = Path(__file__).parent / "guard.py"
# A guest that panics ends, and QEMU with it. The last three spare emulated instructions that guard nothing here.
KERNEL_PARAMETERS = "console=ttyS0 quiet oops=panic panic=-1 mitigations=off init_on_alloc=0 cryptomgr.notests=1"
LAST_WORDS_CHARACTERS = 2000
END_TIMEOUT_S = 10


class Machine:
    """A running QEMU."""

    def __init__(
        self,
        image: Image,
        *,
        memory_mb: int,
        parameters: str = "",
        arguments: Sequence[str] = (),
        fds: Sequence[int] = (),
        initramfs: str | None = None,
        terminal: bool = False,
    ) -> None:
        """Start it.

        `parameters` are added to the kernel's and `arguments` to QEMU's, where they may name the descriptors
        in `fds` by number; those remain the caller's to close. `initramfs` is a path instead of the image's
        own. With `terminal`, the terminal of this process is the guest's console.
        """
        self._console, self._errors = Output("console"), Output("stderr")
        ours, theirs = socket.socketpair()
        self.qmp = Qmp(ours)
        console = "stdio,mux=on,signal=off" if terminal else f"file,path={self._console.path}"
        command = [
            *image.tree.qemu(),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-accel", "tcg", "-machine", "q35", "-smp", "1", "-m", str(memory_mb)),
            *("-kernel", str(image.kernel), "-initrd", initramfs or str(image.initramfs)),
            *("-append", f"{KERNEL_PARAMETERS} {parameters}"),
            *("-chardev", f"{console},id=console", "-serial", "chardev:console"),
            *("-chardev", f"socket,fd={theirs.fileno()},id=qmp", "-qmp", "chardev:qmp"),
            *(("-monitor", "chardev:console") if terminal else ()),
            *arguments,
        ]
        stdin, others = (None, None) if terminal else (subprocess.DEVNULL, self._errors.fd)
        pid, told = os.pipe()
        with theirs, os.fdopen(pid, "rb") as report:
            try:
                self._guard = subprocess.Popen(
                    [sys.executable, "-IS", str(GUARD), str(os.getpid()), str(told), *command],
                    stdin=stdin,
                    stdout=others,
                    stderr=others,
                    pass_fds=(told, theirs.fileno(), self._console.fd, *fds),
                    start_new_session=not terminal,  # ^C is for this process, which then closes the guest
                )
            finally:
                os.close(told)
            line = report.readline()
        if not line:
            self.close()
            raise GuestDeadError(f"QEMU did not start: {self.last_words}")
        self.pid = int(line)
        """QEMU's process id."""

    @property
    def console(self) -> str:
        """All that the guest wrote to its console, also after the end."""
        return self._console.text()

    @property
    def last_words(self) -> str:
        """What explains a sudden end: QEMU's complaints, and the last lines on the console."""
        said = (self._errors.text().strip(), self.console[-LAST_WORDS_CHARACTERS:].strip())
        return "\n".join(filter(None, said)) or "neither QEMU nor the guest gave a reason"

    def wait(self) -> int:
        """QEMU's exit status, once it has ended by itself."""
        return self._guard.wait()

    def close(self) -> None:
        """End it at once, and wait for that."""
        self._guard.terminate()
        self._guard.wait(END_TIMEOUT_S)
        self.qmp.close()
        self._console.close()
        self._errors.close()
