"""A program that writes random data to its peer and reads it back, for as long as it is let, and can move meanwhile.

Decides what is written and whether it came back right. Must never know where its queue pair is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from softrnic.control.demo.flow import STALL_SECONDS, FlowError
from softrnic.errors import SoftRnicError
from softrnic.verbs import Cq, Mr, Qp, SendWr, WrOpcode

MESSAGE = 1 << 16
BATCH = 8  # messages of a round: all written, then all read back
AREA = MESSAGE * BATCH
POLL_SECONDS = 0.005


@dataclass
class Seat:
    """What the program works with: in one place, and after a move in another."""

    qp: Qp
    cq: Cq
    mr: Mr
    data: np.ndarray
    """Of the region: first what is written to the peer, then what is read back, then what the peer writes here."""


class Talker:
    """One program, in a thread of its own. It holds `_turn` whenever it touches queues or memory."""

    def __init__(self, seat: Seat, remote: tuple[int, int], seed: int) -> None:
        """`remote`: address and key of the peer's memory that is its to write, BATCH messages of it."""
        self.rounds = 0
        self.wrong_bytes = 0
        self.error = ""
        self._seat = seat
        self._remote = remote
        self._rng = np.random.default_rng(seed)
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="talker", daemon=True)

    @property
    def nbytes(self) -> int:
        """Bytes written, read back and compared."""
        return self.rounds * AREA

    def start(self) -> None:
        """Begin to talk."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the round, and no more."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def pause(self) -> None:
        """Touch nothing until `go_on`, in the midst of whatever is under way."""
        self._turn.acquire()

    def go_on(self, seat: Seat | None = None) -> None:
        """Go on where it was, in the same place or in a new one."""
        self._seat = seat or self._seat
        self._turn.release()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._round()
                self.rounds += 1
        except SoftRnicError as error:
            self.error = str(error)

    def _round(self) -> None:
        data = self._rng.integers(0, 256, AREA, np.uint8)
        with self._turn:
            self._seat.data[: len(data)] = data
            self._post(WrOpcode.RDMA_WRITE, 0)
        self._finish()
        with self._turn:
            self._post(WrOpcode.RDMA_READ, len(data))
        self._finish()
        with self._turn:
            self.wrong_bytes += int(np.count_nonzero(self._seat.data[len(data) : 2 * len(data)] != data))

    def _post(self, opcode: WrOpcode, offset: int) -> None:
        seat, (address, rkey) = self._seat, self._remote
        seat.qp.post_send([
            SendWr(opcode, [seat.mr.sge(offset + at, MESSAGE)], at, remote_addr=address + at, rkey=rkey)
            for at in range(0, AREA, MESSAGE)
        ])  # fmt: skip

    def _finish(self) -> None:
        """Until all of the round has completed, wherever."""
        done, waited = 0, 0.0
        while done < BATCH:
            with self._turn:
                taken = self._seat.cq.wait(POLL_SECONDS)
            for wc in taken:
                wc.raise_for_status()
            done += len(taken)
            waited = 0.0 if taken else waited + POLL_SECONDS
            if waited > STALL_SECONDS:
                raise FlowError(f"{BATCH - done} work requests do not complete")
