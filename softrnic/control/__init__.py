"""Everything that does I/O: joins devices to ports, talks to the kernel, to the user and to other hosts."""

SPIN_NS = 50_000  # how long an idle NIC polls at most, if nothing is said: about one wake-up, see spin.py
