"""Hosts: what lies between a device and the kernel beside it."""

from __future__ import annotations

import asyncio

import pytest

from softrnic.control import warm
from softrnic.control.fabric import fabric
from softrnic.verbs import AhAttr


@pytest.mark.privileged("netns", "tun")
@pytest.mark.parametrize("wire", ["veth", "tap"])
def test_neighbours_are_found_from_within_an_event_loop(wire: str) -> None:
    """As a program does that uses asyncio and lets the device find the MAC."""
    warm.prepare()
    with fabric(wire) as (a, b):

        async def find() -> bytes:
            ah = a.device.alloc_pd().create_ah(AhAttr(b.address))
            return bytes(a.device.record["avs"][ah.index]["hdr"][:6])

        assert asyncio.run(find()) == b.mac
