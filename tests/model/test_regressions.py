"""What the models have found, each reduced to the few packets that show it."""

from __future__ import annotations

import pytest

from softrnic.verbs import Access, Mtu, SendFlags, SendWr, Sge, WrOpcode
from tests.model import packets as p
from tests.model.nic import MEMORY, OWN_KEY, Nic
from tests.model.packets import Packet


@pytest.mark.parametrize("syndrome", [0x80, 0x81, 0x9F])
def test_a_reserved_syndrome_says_nothing_about_credits(syndrome: int) -> None:
    """Bit 7 is reserved (9.7.5.2.1): behind an old PSN too, where an ACK would only bring credits."""
    nic = Nic(bytes(MEMORY), epsn=0, sq_psn=10, mtu=Mtu.MTU_256, access=Access(0), depth=0, max_rd_atomic=1)
    nic.post_send(SendWr(WrOpcode.SEND, [Sge(0, 257, OWN_KEY)], 1, SendFlags.SIGNALED))
    nic.receive(Packet(opcode=p.ACK, psn=9, syndrome=syndrome, msn=0))
    assert [packet.opcode for packet in nic.transmit()] == [p.SEND_FIRST, p.SEND_LAST]
    nic.close()
