"""The allocator's setting, by the pages that a process takes."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys
import numpy as np
from nova3d.utils.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
np.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(argument: str, **variables: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned, and the page faults of 20 arrays of 32 MiB, made and freed after a first."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", PROGRAM, argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer, faults = done.stdout.split()
    return answer, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_and_a_setting_of_the_user_stays() -> None:
    _, default = run("default")
    answer, kept = run("keep")
    assert answer == "True" and 5 * kept < default
    assert run("keep", MALLOC_MMAP_THRESHOLD_="131072")[0] == "False"
