"""From looks at a partition's files to the intervals in which a checkpoint ran."""

import os

from bench.checkpoints import Seen, Timeline, look


def intervals(*looks):
    timeline = Timeline()
    for at_s, root, others, *told in looks:
        timeline.look(Seen(float(at_s), root, others, *told))
    return timeline.end()


def test_a_checkpoint_runs_from_its_first_page_to_its_root():
    assert intervals((0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 1, 2), (4, 1, 3), (5, 2, 3), (6, 2, 3)) == [(1.0, 5.0)]


def test_one_that_began_and_ended_between_two_looks_is_seen():
    assert intervals((0, 1, 1), (1, 2, 2), (2, 2, 2)) == [(0.0, 1.0)]


def test_one_that_still_runs_at_the_end_counts():
    assert intervals((0, 1, 1), (1, 1, 2), (2, 1, 3)) == [(0.0, 2.0)]


def test_what_the_partition_tells_is_believed_over_its_files():
    looks = [(0, 1, 1, False), (1, 1, 2, False), (2, 1, 3, True), (3, 1, 4, True), (4, 2, 4, False), (5, 2, 5, False)]
    assert intervals(*looks) == [(1.0, 4.0)]


def test_a_look_tells_the_root_from_the_other_files(tmp_path):
    assert (look(tmp_path, None).root, look(tmp_path, None).others) == (0, 0)
    for name, changed in (("pages", 5), ("index-0-1-0001.run", 9), ("checkpoint", 7), ("wal-1.log", 99)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(changed, changed))
    seen = look(tmp_path, None)
    assert (seen.root, seen.others) == (7, 9)
