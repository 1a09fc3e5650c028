"""Percentiles, ratios, and processor time of other processes."""

import os
import subprocess
import sys

import pytest

from bench.measure import command_line, cpu_s, cpu_ticks, pairwise_ratio, percentile, process_tree
from bench.workload import BenchError

# A child of its own, then 0.2 s of work, then a word that it is done.
BUSY = """
import subprocess, sys, time
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
while time.process_time() < 0.2: pass
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("percent", "expected"), [(1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentile_is_the_nearest_rank(percent, expected):
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_percentile_of_one_value_is_that_value():
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7.0


def test_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_pairwise_ratio_ignores_what_drifts_from_pair_to_pair():
    assert pairwise_ratio([30.0, 300.0, 3000.0], [10.0, 100.0, 1000.0]) == 3.0


def test_pairwise_ratio_wants_pairs():
    with pytest.raises(ValueError, match="argument"):
        pairwise_ratio([1.0, 2.0], [1.0])


def test_cpu_ticks_survive_a_program_name_with_spaces_and_parentheses():
    stat = "42 (a b) c) S " + " ".join(str(n) for n in range(4, 53))
    assert cpu_ticks(stat) == 14 + 15 + 16 + 17


def test_cpu_and_descendants_of_a_process_that_works():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert cpu_s([process.pid]) >= 0.19
        assert process_tree(process.pid) == [process.pid, grandchild]
        assert grandchild in process_tree(os.getpid())
        assert command_line(grandchild)[0] == "cat"
        process.communicate("")
    assert command_line(process.pid) == [""]


def test_cpu_of_a_process_that_is_gone_is_an_error():
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(BenchError, match=str(process.pid)):
        cpu_s([process.pid])
