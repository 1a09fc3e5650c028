"""The sketch of how often pages were used: what it counts, forgets, and keeps when the pool changes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from partitions import frequency_sketch
from partitions.frequency_sketch import FrequencySketch


def test_the_sketch_counts_never_too_little_until_it_halves() -> None:
    sketch = FrequencySketch(200)
    rng = random.Random(2)
    counts: dict[int, int] = {}
    for _ in range(3000):
        page = int(rng.paretovariate(0.9)) % 2000
        counts[page] = counts.get(page, 0) + 1
        sketch.add([page])
    assert all(sketch.estimate(page) >= min(15, count) for page, count in counts.items())
    assert sum(sketch.estimate(page) == min(15, count) for page, count in counts.items()) > 0.9 * len(counts)
    before = {page: sketch.estimate(page) for page in counts}
    sketch.age(FrequencySketch.PERIOD * 200)
    assert all(sketch.estimate(page) == estimate // 2 for page, estimate in before.items())
    sketch.check()


def test_a_large_sketch_is_halved_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrequencySketch, "SLICE", 100)
    sketch = FrequencySketch(50)  # tables of 1,024 bytes
    pages = list(range(200))
    for _ in range(8):
        sketch.add(pages)
    sketch.age(FrequencySketch.PERIOD * 50)
    assert max(map(sketch.estimate, pages)) >= 8
    for _ in range(10):
        sketch.age(1)
        sketch.check()
    assert {sketch.estimate(page) for page in pages} == {4}


@pytest.mark.parametrize("change", [lambda n: n * 5, lambda n: n + 1, lambda n: n // 3, lambda n: 1])
def test_a_sketch_keeps_its_counts_when_the_capacity_changes(change: Callable[[int], int]) -> None:
    sketch = FrequencySketch(100)
    for page in range(30):
        sketch.add([page] * (page % 8))
    sketch.resize(change(100))
    sketch.check()
    assert all(sketch.estimate(page) >= page % 8 for page in range(30))
    sketch.resize(100)
    sketch.check()


def test_a_capacity_that_wavers_about_a_power_of_two_folds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folds = []
    folded = frequency_sketch._folded

    def counted(table: bytearray) -> bytearray:
        folds.append(len(table))
        return folded(table)

    monkeypatch.setattr(frequency_sketch, "_folded", counted)
    sketch = FrequencySketch(86)  # 12 counters each are more than 1,024
    for pages in (85, 86, 84, 87, 85):
        sketch.resize(pages)
        sketch.check()
    assert folds == []
    sketch.resize(40)  # a quarter will do
    sketch.check()
    assert folds == [2048, 2048]
