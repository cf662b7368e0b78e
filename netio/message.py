"""struct msghdr in a port's scratch memory: one datagram with its address and its control messages.

Decides where everything lies, from the address of the msghdr on (LP64).
"""

from __future__ import annotations

from softrnic.jit import inline, ld32, ld64, st32, st64

# struct msghdr: name i8, namelen i4, iov i8, iovlen i8, control i8, controllen i8, flags i4
_NAME, _NAMELEN, _IOV, _IOVLEN, _CONTROL, _CONTROLLEN, _FLAGS = 0, 8, 16, 24, 32, 40, 48
AT_IOV, AT_NAME, AT_CONTROL = 64, 96, 128
NAME_BYTES = 28  # struct sockaddr_in6
CONTROL_BYTES = 256
# struct cmsghdr: len i8, level i4, type i4, data; each starts at a multiple of 8
CMSG_HEADER = 16


@inline
def prepare_message(message: int, payload: int, nbytes: int, name: int, control: int) -> None:
    """A msghdr for nbytes at `payload`, with `name` bytes of address and `control` bytes of control
    messages.
    """
    st64(message + _NAME, message + AT_NAME if name else 0)
    st64(message + _NAMELEN, name)
    st64(message + _IOV, message + AT_IOV)
    st64(message + _IOVLEN, 1)
    st64(message + _CONTROL, message + AT_CONTROL)
    st64(message + _CONTROLLEN, control)
    st64(message + _FLAGS, 0)
    st64(message + AT_IOV, payload)
    st64(message + AT_IOV + 8, nbytes)


@inline
def control_end(message: int) -> int:
    """Where the control messages received end."""
    return message + AT_CONTROL + min(int(ld64(message + _CONTROLLEN)), CONTROL_BYTES)


@inline
def next_control(at: int, end: int) -> int:
    """The control message behind the one at `at`; `end` if there is none."""
    length = int(ld64(at))
    behind = at + ((length + 7) & ~7)
    return behind if length >= CMSG_HEADER and behind + CMSG_HEADER <= end else end


@inline
def control_level(at: int) -> int:
    """cmsg_level."""
    return int(ld32(at + 8))


@inline
def control_type(at: int) -> int:
    """cmsg_type."""
    return int(ld32(at + 12))


@inline
def write_control(at: int, level: int, kind: int, nbytes: int) -> int:
    """The header of a control message of nbytes; returns where its data go."""
    st64(at, CMSG_HEADER + nbytes)
    st32(at + 8, level)
    st32(at + 12, kind)
    return at + CMSG_HEADER
