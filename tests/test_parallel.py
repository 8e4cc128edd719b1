"""Threads: a trial takes one, and what comes after it in the same process has all of them again."""

import re
import subprocess
import sys

import pytest

NUMBERS = """
import re, torch
from harness.parallel import one_thread
torch.set_num_threads(3)
def numbers():
    said = torch.__config__.parallel_info()
    return re.findall(r"(?:omp|mkl)_get_max_threads\\(\\) : (\\d+)", said)
before = numbers()
with one_thread():
    inside = numbers()
print(before, inside, numbers())
"""


def test_one_thread_gives_back_all_of_them():
    """Torch's own library of matrix products too, which no other library reports."""
    out = subprocess.check_output([sys.executable, "-c", NUMBERS], text=True)
    before, inside, after = (re.findall(r"\d+", part) for part in re.findall(r"\[.*?\]", out))
    if len(before) < 2:
        pytest.skip("this build of torch does not say how many threads MKL has")
    assert set(before) == {"3"} and set(inside) == {"1"} and after == before
