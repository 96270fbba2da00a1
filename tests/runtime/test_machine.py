import subprocess
import sys

import numpy as np
import pytest

from wmtp.runtime.machine import peak_resident_bytes

CHILD = "from wmtp.runtime.machine import peak_resident_bytes; print(peak_resident_bytes())"


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_resident_bytes()
    held = np.ones(before // 8 + (64 << 20) // 8)
    assert peak_resident_bytes() - before > 32 << 20
    del held


@pytest.mark.skipif(sys.platform != "linux", reason="of /proc")
def test_the_peak_of_who_started_a_process_is_not_its_own() -> None:
    held = np.ones((200 << 20) // 8)
    child = int(subprocess.check_output([sys.executable, "-c", CHILD]))
    del held
    assert 1 << 20 < child < 150 << 20
