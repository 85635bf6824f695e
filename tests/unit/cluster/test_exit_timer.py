import subprocess
import sys
import time


def test_process_that_holds_the_interpreter_is_ended_in_time():
    code = (
        "import re\n"
        "from mnist_dist.cluster.exit_timer import exits_unless_done_within as limit\n"
        "with limit(0.2, code=3): pass\n"
        "with limit(0.5, code=143): re.match('(a+)+$', 'a' * 50 + 'b')\n"
    )
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert result.returncode == 143
    assert time.monotonic() - began < 5
