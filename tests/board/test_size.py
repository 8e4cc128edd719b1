"""A suite whose board would not fit into memory is refused before anything runs."""

import re
from pathlib import Path

import pytest

from harness import api
from harness.board import size
from harness.errors import UserError
from harness.machine import memory_bytes

TASK = """
seeds = 3
tasks = [{ name = "low_rank", n_users = 10, new_users = 5, pairs_per_user = 12, queries = 4, shots = [0, 4] }]
methods = [{ name = "shared" }, { name = "per_user" }]
"""


def test_the_expected_memory_grows_with_pairs_of_methods_and_with_cells(tmp_path):
    file = tmp_path / "suite.toml"

    def expected(text):
        file.write_text(text)
        return size.board_bytes(api.plan_suite(file, tmp_path / "store"))

    few = expected(TASK)
    more_people = expected(TASK.replace("new_users = 5", "new_users = 25"))
    # 3 seeds, two numbers of shots and the swap control, 20 more people
    methods = len({t.method for t in api.plan_suite(file, tmp_path / "store").trials})
    assert more_people - few == size.BYTES_PER_CELL * 3 * 3 * 20 * methods
    assert few > size.BYTES_AT_LEAST


def test_a_board_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "suite.toml"
    file.write_text(TASK)
    monkeypatch.setattr(size, "memory_bytes", lambda: 10**8)
    with pytest.raises(
        UserError, match=r"the board of this suite would need about 0.6 GB of memory, and this machine has 0.1 GB"
    ) as told:
        api.plan_suite(file, tmp_path / "store")
    assert "split the suite" in told.value.hint


def test_the_memory_of_this_machine_is_known():
    whole = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    assert 0 < memory_bytes() <= 1024 * int(whole[1])
