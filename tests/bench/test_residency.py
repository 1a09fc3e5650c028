"""Memory and disk of processes, as the system tells them."""

import os

from bench.residency import (
    ALLOWED_BESIDE_BYTES,
    DiskTraffic,
    Residency,
    allowed_bytes,
    bytes_on_disk,
    disk_traffic,
    resident_bytes,
)

NO_PROCESS = 2**22 + 1  # past the largest id


def test_peaks_are_sampled_for_each_process():
    with Residency(lambda: {"this": os.getpid(), "gone": NO_PROCESS}) as residency:
        pass
    assert residency.peaks["this"] > 1_000_000
    assert residency.peaks["gone"] == 0


def test_a_partition_is_allowed_a_fifth_and_the_interpreter_beside_its_share():
    assert allowed_bytes(1_000_000) == 1_200_000 + ALLOWED_BESIDE_BYTES
    assert resident_bytes(NO_PROCESS) == 0


def test_bytes_on_disk_do_not_count_holes(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "full").write_bytes(b"x" * 100_000)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(50_000_000)
    assert 100_000 <= bytes_on_disk(tmp_path) < 1_000_000


def test_traffic_of_a_process_that_is_gone_is_not_told():
    assert disk_traffic({"gone": NO_PROCESS}) is None
    assert DiskTraffic(5, 7).since(DiskTraffic(1, 2)) == DiskTraffic(4, 5)
