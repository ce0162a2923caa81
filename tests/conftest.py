"""What all tests share: one thread each, so that tests side by side do not wait for one another, and no deadlines."""

import os
import signal
import tempfile
from pathlib import Path

from hypothesis import settings

# before torch is imported, and for the programs that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the CPU engine is compiled once for all tests, and again when its sources change
os.environ.setdefault("GPTFAST_KERNELS", str(Path(tempfile.gettempdir()) / f"gptfast-kernels-of-tests-{os.getuid()}"))

settings.register_profile("untimed", deadline=None, max_examples=60)  # timing never decides a test
settings.load_profile("untimed")

# tests press Ctrl-C; a job that a shell runs in the background inherits that it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
