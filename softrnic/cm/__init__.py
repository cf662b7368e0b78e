"""The IB communication manager: how two consumers agree on a pair of QPs (IBTA chapter 12, annex A11).

    mad.py           the 256-byte datagram of QP1 and its header
    bits.py          tables of bit fields, read and written
    messages.py      REQ, REP, RTU, ... as the specification's tables
    service.py       service ids and the private data header of the RDMA CM
    machine.py       the state machines, as data
    conversation.py  what is remembered of a connection, and the limits on that
    directory.py     tables of conversations
    deadlines.py     timers
    compose.py       the messages a connection sends
    events.py        what the consumer is told
    manager.py       the protocol: MADs in, MADs and events out, time as an argument
    attributes.py    what an agreed connection means for the QP

Nothing here opens a socket, reads a clock or knows a QP object: softrnic.control.cm does.
"""
