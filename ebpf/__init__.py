"""Steering of RoCEv2 packets by an eBPF program, built, loaded and attached without a compiler."""
