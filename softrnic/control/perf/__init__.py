"""perftest's measurements in softrnic: bandwidth and latency of WRITE, READ, SEND and atomics.

`kernels` is the user program, compiled together with the pump; `run` sets a test up and evaluates it; `exchange` lets
two processes agree on it. The command line is softrnic.control.cli.perf.
"""
