"""Settings of the processes that the tests run in."""

import os

# Two worker processes with two OpenMP threads each often share two cores; a thread that waits in a busy loop
# takes the core from the one it waits for. Asleep instead, the tests take a third less time, and the kernels still
# run in parallel. Read when PyTorch loads; pytest-xdist's workers and the processes of tests inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
