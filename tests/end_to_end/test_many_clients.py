"""Hundreds of clients at once, some of them hostile: the short form of tests.campaigns.many_clients."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.many_clients import RECOVERY_S, RSS_BYTES, run


def test_a_crowd_with_clients_that_never_read_or_send_nonsense_harms_nobody_for_long(tmp_path: Path) -> None:
    figures = run(tmp_path / "cluster", clients=200, silent=21, before_s=1.5, flood_s=1.5, seconds=4.0)
    assert figures.welcomed == 179
    assert figures.answered == figures.asked > 0
    assert figures.failed_calls == 0
    assert figures.restarts == 0
    assert 0.0 <= figures.recovered_s <= RECOVERY_S, figures
    assert max(figures.rss_mib.values()) < RSS_BYTES / 2**20
