"""Everything that does I/O: joins devices to ports, talks to the kernel, to the user and to other hosts."""
