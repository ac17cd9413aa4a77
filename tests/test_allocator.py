"""Guards that steps on CPUs use freed memory again: the kernel need not zero its pages."""

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import concurrent.futures, resource
from m3ae_tpu.allocator import keep_freed_memory

keep_freed_memory()

def faults_of_a_buffer():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**27
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with concurrent.futures.ThreadPoolExecutor(1) as thread:
    print([thread.submit(faults_of_a_buffer).result() for _ in range(3)][-1])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_a_thread_gets_a_freed_buffer_again_without_new_pages():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    pages = 2**27 // os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < pages / 100
