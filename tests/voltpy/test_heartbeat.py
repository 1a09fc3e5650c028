"""The heartbeat file and the watch over it."""

from __future__ import annotations

from pathlib import Path

from voltpy import heartbeat
from voltpy.heartbeat import Beat, Watch


def test_words_written_by_one_mapping_are_read_by_another(tmp_path: Path) -> None:
    path = heartbeat.path_in(tmp_path, 3)
    heartbeat.create(path)
    writer, reader = heartbeat.open_words(path), heartbeat.open_words(path)
    assert heartbeat.read(reader) == Beat(0, 0, 0, 0)
    writer[heartbeat.CLIENT_ID] = (1 << 63) - 1
    writer[heartbeat.CALL_NUMBER] = 7
    writer[heartbeat.BUSY] = 5
    writer[heartbeat.PROCEDURE] = 2
    assert heartbeat.read(reader) == Beat((1 << 63) - 1, 7, 5, 2)


def test_what_a_dead_process_left_mapped_does_not_reach_the_next_file(tmp_path: Path) -> None:
    path = heartbeat.path_in(tmp_path, 0)
    heartbeat.create(path)
    old = heartbeat.open_words(path)
    heartbeat.create(path)
    old[heartbeat.BUSY] = 9
    assert heartbeat.read(heartbeat.open_words(path)).busy == 0
    assert path.stat().st_size == heartbeat.FILE_BYTES


def test_a_call_is_stuck_only_after_the_limit_and_only_while_busy() -> None:
    watch = Watch(limit_s=2.0)
    busy, idle = Beat(8, 1, 3, 0), Beat(8, 1, 4, 0)
    assert watch.look(busy, 10.0) is None
    assert watch.look(busy, 12.0) is None
    assert watch.look(busy, 12.1) == busy
    assert watch.look(idle, 12.2) is None
    assert watch.look(idle, 99.0) is None
    assert watch.look(busy, 100.0) is None
    assert watch.look(Beat(8, 2, 3, 0), 101.9) is None
    assert watch.look(Beat(8, 2, 3, 0), 103.0) is None
    watch.forget()
    assert watch.look(Beat(8, 2, 3, 0), 200.0) is None
