"""The tests' own look at processes: a zombie is no process that runs."""

import subprocess
import sys

import psutil
from processes import ends, running

MARK = "a-name-that-only-this-test-uses"


def test_a_zombie_neither_runs_nor_raises():
    with subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(60)  # {MARK}"]) as child:
        process = psutil.Process(child.pid)
        assert not ends(process, seconds=0) and running(MARK) == [process]
        process.kill()
        assert ends(process, seconds=10)
        assert process.status() == psutil.STATUS_ZOMBIE
        assert running(MARK) == []
    assert ends(process, seconds=0) and running(MARK, process) == []
