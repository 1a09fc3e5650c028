"""The benchmark of what rows take in memory runs, on few rows."""

from bench.memory import SHAPES, measured


def test_it_measures_what_pages_and_decoded_rows_take() -> None:
    found = measured(2, 4_000_000)
    assert SHAPES[2].name == "10 strings of 48"
    assert 500 < found.encoded_bytes / found.rows < 510
    assert 0.8 < found.fill < 0.95
    assert found.encoded_bytes < found.resident_bytes <= found.page_bytes + (2 << 20)
    assert 0 < found.decoded_bytes < 30 << 20
