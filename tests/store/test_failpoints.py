import os
import signal
import subprocess
import sys
import time

import pytest

from streamsrv.config import load
from streamsrv.store import failpoints
from streamsrv.store.failpoints import POINTS, Failpoint, armed

SCRIPT = """
from streamsrv.config import load
from streamsrv.store import failpoints
for name in ("mid-body", "mid-body", "after-commit"):
    print(name, flush=True)
    failpoints.hit(name)
"""


def run(**environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_unset_it_does_nothing():
    assert "STREAMSRV_FAILPOINT" not in os.environ
    for name in POINTS:
        failpoints.hit(name)
    done = run()
    assert (done.returncode, len(done.stdout.split())) == (0, 3)


@pytest.mark.parametrize(("spec", "lines"), [("mid-body", 1), ("mid-body@2", 2), ("after-commit=kill", 3)])
def test_kill(spec, lines):
    done = run(STREAMSRV_FAILPOINT=spec)
    assert (done.returncode, len(done.stdout.split())) == (-signal.SIGKILL, lines)


def test_pause():
    point = Failpoint("in-delete@2=pause:0.2")
    started = time.monotonic()
    point.passed("in-delete")
    point.passed("mid-body")
    assert time.monotonic() - started < 0.1
    point.passed("in-delete")
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("spec", ["nowhere", "mid-body=explode", "mid-body@x", "mid-body=pause:x"])
def test_a_wrong_spec_is_an_error(spec):
    with pytest.raises(ValueError):
        Failpoint(spec)


def test_a_file_arms_a_running_process(tmp_path):
    path = tmp_path / "point"
    hit = armed({"STREAMSRV_FAILPOINT_FILE": str(path)})
    other = armed({"STREAMSRV_FAILPOINT_FILE": str(path)})

    def seconds(passed, name):
        started = time.monotonic()
        passed(name)
        return time.monotonic() - started

    assert seconds(hit, "mid-body") < 0.1
    for _ in range(2):  # and arms it again
        path.write_text("mid-body@2=pause:0.2")
        assert seconds(hit, "mid-body") < 0.1
        assert seconds(hit, "after-commit") < 0.1
        assert seconds(other, "mid-body") < 0.1
        assert seconds(hit, "mid-body") >= 0.2
        assert not path.exists()
        assert seconds(other, "mid-body") < 0.1
        time.sleep(0.01)  # a file is told from the one before by its time


def test_of_two_only_one_acts(tmp_path):
    path = tmp_path / "point"
    path.write_text("mid-body=pause:0.2")
    one, other = (armed({"STREAMSRV_FAILPOINT_FILE": str(path)}) for _ in range(2))
    one("after-commit")
    other("after-commit")
    path.rename(tmp_path / "taken")  # by a third
    started = time.monotonic()
    one("mid-body")
    other("mid-body")
    assert time.monotonic() - started < 0.1


def test_a_failpoint_is_no_setting():
    assert load(environment={"STREAMSRV_FAILPOINT": "mid-body", "STREAMSRV_FAILPOINT_FILE": "x"}) == load()
