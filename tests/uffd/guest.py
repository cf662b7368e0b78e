"""A process whose memory a device uses: it owns the pages, and has handed its userfaultfd over. A script.

Reads commands from a socket, one line each, and answers each with one line. The first answer carries descriptors.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys

from netio.uffd import EVENTS, Feature, Mode, Userfaultfd

libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def main(fd: int, kind: str, length: int) -> None:
    """`kind`: shared (a memfd, which is handed over, too) or private."""
    sock = socket.socket(fileno=fd)
    uffd = Userfaultfd.open(EVENTS | Feature.MISSING_SHMEM | Feature.WP_HUGETLBFS_SHMEM | Feature.PAGEFAULT_FLAG_WP)
    fds = [uffd.fileno()]
    if kind == "shared":
        memfd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
        os.ftruncate(memfd, length)
        fds.append(memfd)
        memory = mmap.mmap(memfd, length)
    else:
        memory = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    uffd.register(start, length, Mode.MISSING)
    socket.send_fds(sock, [b"%d\n" % start], fds)
    for line in sock.makefile("rb"):
        what, *words = line.decode().split()
        if what == "write":
            memory[int(words[0]) : int(words[0]) + len(words[1]) // 2] = bytes.fromhex(words[1])
            answer = "ok"
        elif what == "read":
            answer = memory[int(words[0]) : int(words[0]) + int(words[1])].hex()
        else:  # drop, and storm: many times, page after page
            offset, size = start + int(words[0]), int(words[1])
            for i in range(int(words[2]) if what == "storm" else 1):
                at, length = (offset + i * 4096 % size, 4096) if what == "storm" else (offset, size)
                answer = str(libc.madvise(at, length, 9 if kind == "shared" else mmap.MADV_DONTNEED))
        sock.send(answer.encode() + b"\n")


main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
