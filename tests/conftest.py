"""What all tests share: one thread each, so that tests running side by side do not wait for one another."""

import os

# before torch is imported, and for the programs that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
