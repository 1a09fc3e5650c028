"""Checkpoints give way to the WAL."""

from __future__ import annotations

from partitions.pace import LEAST, MOST, Pace


def test_pauses_grow_while_flushes_are_slow_and_shrink_when_they_are_not() -> None:
    pace = Pace()
    for _ in range(50):
        pace.flushed(0.0002, beside_checkpoint=False)
    assert pace.pause_s(0.01) == 0.01
    pace.flushed(0.0009, beside_checkpoint=True)
    assert pace.pause_s(0.01) == 0.015
    for _ in range(20):
        pace.flushed(0.0009, beside_checkpoint=True)
    assert pace.pause_s(0.01) == MOST * 0.01
    for _ in range(500):
        pace.flushed(0.0003, beside_checkpoint=True)
    assert pace.pause_s(0.01) == LEAST * 0.01


def test_what_is_usual_is_learned_without_a_checkpoint() -> None:
    pace = Pace()
    for _ in range(200):
        pace.flushed(0.004, beside_checkpoint=False)  # a slow disk
    pace.flushed(0.006, beside_checkpoint=True)
    assert pace.pause_s(0.01) < 0.01
    pace.flushed(0.009, beside_checkpoint=True)
    assert pace.pause_s(0.01) > 0.01


def test_before_anything_is_known_a_pause_is_as_long_as_the_chunk() -> None:
    pace = Pace()
    assert pace.pause_s(0.02) == 0.02
    pace.flushed(1.0, beside_checkpoint=True)
    assert pace.pause_s(0.02) <= 0.02
