"""Random numbers that kernels and the interpreter draw alike: xorshift32 (Marsaglia 2003) plus a Weyl sequence.

Not numpy's, whose state a kernel cannot share, and without a product that would overflow 63 bits. The period is 2^64.
"""

from __future__ import annotations

import numpy as np

from softrnic.jit import i64, inline

CHANCE = np.dtype([("x", "i8"), ("weyl", "i8")])

CERTAIN = 1 << 32  # a probability of 1, in the units of `chance`
_MASK = 0xFFFFFFFF
_WEYL = 0x61C88647  # odd


def seed_chance(record: np.void, seed: int | tuple[int, ...]) -> None:
    """Start the sequence of `seed`; neighbouring seeds give unrelated sequences."""
    mixed = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    record["x"] = int(mixed[0]) or 1
    record["weyl"] = int(mixed[1])


@inline
def draw(rng):
    """The next 32 bits."""
    x = i64(rng["x"])
    x ^= (x << 13) & _MASK
    x ^= x >> 17
    x ^= (x << 5) & _MASK
    weyl = (i64(rng["weyl"]) + _WEYL) & _MASK
    rng["x"] = x
    rng["weyl"] = weyl
    return (x + weyl) & _MASK


@inline
def happens(rng, probability):
    """True in `probability` of 2^32 cases; what cannot happen draws nothing."""
    return probability > 0 and draw(rng) < probability


@inline
def below(rng, bound):
    """Uniform in 0 to bound-1, for bounds up to 2^31."""
    return (draw(rng) * bound) >> 32
