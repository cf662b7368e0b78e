"""RoCEv2 packets: fields, opcodes, headers, frames, ICRC, and how to show them to a person."""
