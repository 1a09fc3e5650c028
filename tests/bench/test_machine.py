"""The machine is described by what it says of itself."""

from pathlib import Path

from bench import machine

MOUNTS = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/disk xfs rw 0 0\n"


def test_filesystem_is_that_of_the_nearest_mount_point():
    assert machine.filesystem_of(Path("/tmp/disk/data"), MOUNTS) == "xfs"
    assert machine.filesystem_of(Path("/tmp/diskette"), MOUNTS) == "tmpfs"
    assert machine.filesystem_of(Path("/var"), MOUNTS) == "ext4"


def test_description_names_the_processor_and_what_a_flush_takes(tmp_path):
    described = machine.describe(tmp_path)
    assert described.cpu
    assert described.cores >= 1
    assert 0 < described.flush_p50_us <= described.flush_p99_us
    assert described.packages["msgspec"]
    assert not list(tmp_path.iterdir())
