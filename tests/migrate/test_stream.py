"""The stream: what is said comes back as it was, and whatever else arrives is a StateError."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest

from softrnic.errors import StateError
from softrnic.migrate import pages, stream
from softrnic.migrate.commit import Target

NONCE, IDENT = bytes(range(32)), bytes(range(16))
SAID: list[tuple[stream.AnyMessage, int]] = [
    (stream.Challenge(1, NONCE, True), 0),
    (stream.Proof(NONCE, NONCE), 0),
    (stream.Hello(1, IDENT, "vf0", [stream.Piece("0x1000", 4097)], False), 0),
    (stream.Welcome(1, IDENT, Target.HOLDING, 17, bytes(6)), 0),
    (stream.Pages(1, 0, 5, bytes(8)), 8192),
    (stream.Zeros(2, 0, 5, 1000), 0),
    (stream.Sync(), 0),
    (stream.Ack(2), 0),
    (stream.Want(0, 7), 0),
    (stream.Missing(0), 3),
    (stream.Sketch(), 100),
    (stream.State(5, False), 100),
    (stream.Sketched(), 0),
    (stream.Ready(), 0),
    (stream.Refused("$.qps[0]", "no"), 0),
    (stream.Commit(), 0),
    (stream.Runs(), 0),
    (stream.Retract(), 0),
    (stream.Drop(), 0),
    (stream.Dropped(), 0),
    (stream.Complete(), 0),
]


def heard(frame: bytes) -> tuple[stream.AnyMessage, int]:
    """What a receiver makes of the bytes of a frame up to its body."""
    head = frame[: stream.HEAD.size]
    if len(head) < stream.HEAD.size:
        raise StateError("$", "cut short")
    length, body, crc = stream.lengths(head)
    return stream.parse(frame[stream.HEAD.size : stream.HEAD.size + length], crc, body), body


@pytest.mark.parametrize(("message", "body"), SAID, ids=lambda x: type(x).__name__)
def test_said_and_heard(message: stream.AnyMessage, body: int) -> None:
    assert heard(stream.emit(message, body)) == (message, body)


def test_every_kind_of_message_is_tried() -> None:
    assert {type(message) for message, _ in SAID} == set(stream.AnyMessage.__args__)


def frame(header: bytes, body: int = 0) -> bytes:
    return stream.HEAD.pack(len(header), body, zlib.crc32(header)) + header


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (stream.HEAD.pack(0, 0, 0), "header"),
        (stream.HEAD.pack(1 << 31, 0, 0), "header"),
        (stream.HEAD.pack(5, 1 << 31, 0) + b"12345", "body"),
        (stream.emit(stream.Sync())[:-1] + b"?", "damaged"),
        (stream.emit(stream.Sync(), 1), "bytes of body"),
        (stream.emit(stream.Pages(1, 0, 0, bytes(8)), stream.RUN_PAGES * stream.PAGE + 1), "bytes of body"),
        (stream.emit(stream.Pages(1, 0, 0, bytes(5)), 1), "crcs"),
        (stream.emit(stream.Pages(1, stream.MAX_PIECES, 0, bytes(4)), 1), "piece"),
        (stream.emit(stream.Pages(-1, 0, 0, bytes(4)), 1), "seq"),
        (stream.emit(stream.Zeros(1, 0, 0, 0)), "count"),
        (stream.emit(stream.State(101, False), 100), "owner"),
        (stream.emit(stream.Hello(1, b"short", "x", [], False)), "ident"),
        (stream.emit(stream.Hello(1, IDENT, "", [], False)), "name"),
        (stream.emit(stream.Hello(1, IDENT, "x", [stream.Piece("a", 0)], False)), "pieces"),
        (stream.emit(stream.Refused("p" * 5000, "")), "path"),
        (frame(b"\x81\xa2is\xa4nope"), r"\$"),
        (frame(b"\xc1"), r"\$"),
        (frame(b"\x91" * 100_000), r"\$"),
        (frame(b"\x82\xa2is\xa4sync\xa1x\x01"), r"\$"),
    ],
)
def test_refused(data: bytes, where: str) -> None:
    with pytest.raises(StateError, match=where):
        heard(data)


def test_any_bytes() -> None:
    rng = random.Random(1)
    kept = 0
    for _ in range(20_000):
        message, body = rng.choice(SAID)
        data = bytearray(stream.emit(message, body))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.7:  # a checksum that fits what it is of
            header = bytes(data[stream.HEAD.size :])
            data[:12] = stream.HEAD.pack(len(header), body, zlib.crc32(header))
        try:
            found, _ = heard(bytes(data))
        except StateError:
            continue
        kept += 1
        assert isinstance(found, stream.Message)
    assert kept > 100


# --- pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 4095, 4096, 4097, 12_288, 20_000])
def test_pages_against_the_obvious(length: int) -> None:
    rng = np.random.default_rng(length)
    data = rng.integers(0, 256, length, np.uint8)
    data[4096:8192] = 0
    count = pages.page_count(length)
    parts = [data[i * 4096 : (i + 1) * 4096] for i in range(count)]
    assert pages.crcs(data) == b"".join(zlib.crc32(part.tobytes()).to_bytes(4, "little") for part in parts)
    assert pages.zero_pages(data).tolist() == [not part.any() for part in parts]
    for changed in {0, length // 2, length - 1}:
        copy = data.copy()
        copy[changed] ^= 1
        assert pages.differing_pages(data, copy).tolist() == [i == changed // 4096 for i in range(count)]
    assert not pages.differing_pages(data, data.copy()).any()
    covered = [data[pages.span(i, 1, length)] for i in range(count)]
    assert all(np.array_equal(a, b) for a, b in zip(covered, parts, strict=True))


def test_runs_and_bitmaps() -> None:
    rng = random.Random(3)
    for _ in range(200):
        bits = np.array([rng.random() < 0.5 for _ in range(rng.randrange(0, 70))], bool)
        most = rng.randrange(1, 10)
        found = list(pages.runs(bits, most))
        assert [i for first, count in found for i in range(first, first + count)] == np.flatnonzero(bits).tolist()
        assert all(0 < count <= most for _, count in found)
        assert np.array_equal(pages.from_bitmap(pages.to_bitmap(bits), len(bits)), bits)
