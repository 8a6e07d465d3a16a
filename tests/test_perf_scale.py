"""What `python -m perf scale` reads: the summary of strace, and the time of a process."""

import os

from perf.scale import calls_in
from perf.servers import cpu_seconds

SUMMARY = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 93.10    0.052001         433       120           fdatasync
  6.90    0.003850           4       963        12 writev
------ ----------- ----------- --------- --------- ----------------
100.00    0.055851          51      1083        12 total
"""


def test_calls_of_a_summary():
    assert calls_in(SUMMARY) == {"fdatasync": 120, "writev": 963}


def test_time_passes():
    before = cpu_seconds(os.getpid())
    while os.times().user + os.times().system < before + 0.1:
        pass
    assert cpu_seconds(os.getpid()) >= before + 0.05
