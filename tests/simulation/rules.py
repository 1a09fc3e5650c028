"""The rules of lending and two-phase commit: what each says, its tests, and the builds that are broken by its absence.

Numbers are those that tests and comments name. Tests are named `file::function`, under tests/; the first of each rule
goes through the interleaving that the rule is there for. Builds are those of tests.simulation.broken and of
tests.simulation.broken_lives. Where a rule has none, it says why the simulation could not tell such a build from a
sound one.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    says: str
    tests: tuple[str, ...]
    builds: tuple[str, ...]
    no_build: str = ""


_TRANSACTIONS = "coordinator/test_transactions.py::"
_LENDING = "partitions/test_lending.py::"
_TURNS = "partitions/test_turns.py::"
_EXECUTOR = "partitions/test_executor.py::"

RULES: dict[int, Rule] = {
    1: Rule(
        "A read round never waits: each part of it reads at once, or says that something is not here.",
        (
            _TRANSACTIONS + "test_rule_1_a_read_that_meets_a_lent_key_is_cancelled_and_tried_again",
            _LENDING + "test_a_fragment_never_waits_for_what_is_lent",
        ),
        ("reads_do_not_wait_for_what_is_lent",),
    ),
    2: Rule(
        "All that one read-only call reads comes from one round.",
        (_TRANSACTIONS + "test_rule_2_a_body_that_misses_more_reads_everything_again_in_one_round",),
        ("reads_come_from_several_rounds",),
    ),
    3: Rule(
        "Every reply waits behind the rounds, and the parts of joint calls, that were begun before it.",
        (
            _TURNS + "test_a_reply_waits_behind_each_round_that_was_opened_before_it",
            _TRANSACTIONS + "test_rule_3_nobody_is_answered_while_a_round_is_open",
            _TRANSACTIONS + "test_rule_3_replies_wait_until_all_parts_of_a_joint_call_have_run",
            _LENDING + "test_rule_3_replies_wait_from_the_part_of_a_joint_call_until_it_is_released",
        ),
        ("replies_are_not_held_behind_reads", "parts_of_joint_calls_hold_nothing_back"),
    ),
    4: Rule(
        "No body runs while a round is open. Overdue ones are given up: replies may have been let go.",
        (
            _TRANSACTIONS + "test_rule_4_no_body_runs_while_a_round_is_open_and_overdue_ones_are_cancelled",
            _TRANSACTIONS + "test_answers_that_come_when_replies_may_have_been_let_go_are_not_believed",
            _TRANSACTIONS + "test_a_round_is_not_believed_when_a_partition_was_lost_before_the_last_answer",
            _LENDING + "test_a_round_outlives_a_session_that_ends_without_the_coordinator_s_knowledge",
            _TURNS + "test_replies_are_held_for_as_long_as_the_order_says_from_when_it_came",
            _TURNS + "test_a_partition_that_stops_hangs_up_on_the_coordinator_before_held_replies_leave",
        ),
        (
            "bodies_run_while_a_round_is_open",
            "late_answers_are_believed",
            "answers_of_the_lost_are_believed",
            "nobody_is_released",
        ),
    ),
    5: Rule(
        "What is reported or replied has been flushed, in the same life of its process.",
        (_TURNS + "test_no_report_leaves_before_what_it_rests_on_is_flushed",),
        ("reports_before_flush", "replies_before_flush"),
    ),
    6: Rule(
        "A partition votes yes only for what it has held without a gap; what it lent in a former life it has not.",
        (
            _LENDING + "test_a_restarted_partition_votes_no_for_what_it_lent_in_its_former_life",
            _TRANSACTIONS + "test_rule_6_what_was_lent_by_a_partition_s_former_life_is_not_relied_on",
        ),
        ("lost_loans_are_forgotten", "leases_end_in_silence"),
    ),
    7: Rule(
        "Rows, absent keys, values of unique indexes, and whole tables are lent alike.",
        (
            "partitions/test_lending_unique.py::test_rule_7_a_value_that_was_free_is_kept_from_a_local_insert",
            "partitions/test_lending_unique.py::test_rule_7_a_value_that_was_taken_is_not_given_up_meanwhile",
            "coordinator/test_entries.py::test_rule_7_a_body_is_told_of_a_duplicate_as_it_is_in_one_partition",
            _LENDING + "test_an_absent_key_is_lent_like_a_row__a_local_insert_waits",
            _LENDING + "test_whatever_touches_a_table_that_is_lent_whole_waits",
        ),
        (
            "lent_keys_are_not_guarded",
            "absent_keys_are_not_lent",
            "unique_values_are_not_lent",
            "lent_tables_are_not_guarded",
        ),
    ),
    8: Rule(
        "What a batch reads of a table has in it what the batch has written there.",
        (_TRANSACTIONS + "test_rule_8_a_scan_sees_what_the_batch_has_written",),
        ("scans_do_not_see_what_the_batch_has_written",),
    ),
    9: Rule(
        "Tables that all partitions have a copy of change in all of them or in none, and only through the coordinator.",
        (
            _TRANSACTIONS + "test_rule_9_a_copied_table_is_written_in_every_partition_under_one_decision",
            _LENDING + "test_a_local_write_to_copies_is_undone_and_sent_elsewhere",
        ),
        ("copies_are_written_in_one_partition",),
    ),
    10: Rule(
        "A decision is never refused for a row that is on disk: it waits for its page.",
        (_LENDING + "test_every_order_waits_for_its_pages",),
        ("decisions_do_not_wait_for_pages",),
    ),
    11: Rule(
        "No reply of a batch, that of an abort included, leaves before the batch's outcome.",
        (_TRANSACTIONS + "test_rule_11_no_reply_of_a_batch_leaves_before_its_outcome",),
        ("replies_leave_before_the_outcome", "failed_calls_are_told_at_once"),
    ),
    12: Rule(
        "On return, those who waited run before the next batch borrows, and everything does return now and then.",
        (
            _TURNS + "test_a_decision_lets_those_who_waited_run_before_the_next_borrow",
            _LENDING + "test_decide_and_the_next_borrow_arrive_together__the_local_call_does_not_starve",
            _TRANSACTIONS + "test_rule_12_the_next_batch_borrows_after_the_decision_of_the_one_before",
            _TRANSACTIONS + "test_rule_12_after_some_batches_that_overlap_one_waits_until_everything_is_here_again",
        ),
        (
            "the_next_borrow_comes_before_those_who_waited",
            "overlaps_have_no_end",
            "two_batches_borrow_the_same",
            "lends_wait_for_those_who_wait_for_what_is_lent",
        ),
    ),
    13: Rule(
        "A batch is over after a bounded number of rounds; what refuses it fails those alone whose fault it is.",
        (
            _TRANSACTIONS + "test_rule_13_what_misses_on_after_some_rounds_goes_on_in_the_next_batch",
            _TRANSACTIONS + "test_rule_13_a_full_disk_fails_only_those_who_write_there",
            _TRANSACTIONS + "test_rule_13_a_refused_batch_is_halved_until_the_culprit_is_alone",
        ),
        (
            "batches_borrow_without_end",
            "a_full_disk_fails_whole_batches",
            "refused_batches_run_again_as_they_were",
            "refused_batches_fail_as_a_whole",
        ),
    ),
    14: Rule(
        "Calls that wait for what is lent have a limit and a deadline of their own.",
        (
            _LENDING + "test_one_key_in_doubt_fills_no_limit_of_others",
            _LENDING + "test_a_call_that_has_waited_too_long_for_what_is_lent_is_told_so",
        ),
        (
            "who_waits_for_what_is_lent_waits_for_ever",
            "all_who_wait_share_one_limit",
            "nobody_runs_while_many_wait",
            "all_are_given_up_with_the_first",
        ),
    ),
    16: Rule(
        "Whoever is in doubt of a batch that is under way is told after its decision; a Decided follows its flush.",
        (
            _TRANSACTIONS + "test_rule_16_an_inquiry_about_the_live_batch_is_answered_after_its_decision",
            _TURNS + "test_nobody_waits_for_the_flush_of_a_decision",
        ),
        ("everybody_in_doubt_is_told_no", "decides_are_acknowledged_before_flush"),
    ),
    17: Rule(
        "Checkpoints have what is prepared and undecided, and the outcomes of calls.",
        (
            _LENDING + "test_prepare__checkpoint__wal_cut__crash__commit",
            _EXECUTOR + "test_a_retry_after_recovery_answers_the_first_result",
        ),
        ("checkpoints_forget_prepares", "checkpoints_forget_outcomes"),
    ),
    18: Rule(
        "Decisions are on record before they count, with results of calls; what one partition committed can be asked.",
        (
            _TRANSACTIONS + "test_rule_18_a_new_coordinator_decides_what_is_in_doubt_from_its_log",
            _TRANSACTIONS + "test_rule_18_a_commit_in_one_partition_whose_vote_was_lost_is_asked_for",
            _TRANSACTIONS + "test_a_retry_at_a_new_coordinator_gets_the_first_result",
        ),
        (
            "decisions_are_not_logged",
            "decisions_are_not_flushed",
            "in_doubt_means_no",
            "one_phase_outcomes_are_not_asked_for",
            "no_is_taken_for_yes",
        ),
    ),
    19: Rule(
        "What is prepared or decided is on disk whatever --fsync says, and stays away until it is decided.",
        (
            _TURNS + "test_no_report_leaves_before_what_it_rests_on_is_flushed",
            _LENDING + "test_in_doubt_keys_stay_away_through_a_crash_and_only_they",
        ),
        ("votes_are_not_logged", "prepared_keys_are_free", "prepared_keys_are_free_after_a_crash"),
    ),
    20: Rule(
        "What recovery has read counts when it is flushed.",
        ("voltpy/test_record_log.py::test_only_what_no_frame_says_was_flushed_is_written_again",),
        ("torn_tails_are_kept",),
    ),
    21: Rule(
        "Each process has its log to itself, and a higher epoch in each life.",
        (
            "coordinator/test_decision_log.py::test_two_processes_can_t_have_it",
            "coordinator/test_decision_log.py::test_decisions_are_there_after_a_crash_and_the_epoch_is_raised",
            "partitions/test_recovery.py::test_the_wal_is_locked_while_a_partition_has_it",
            _LENDING + "test_a_dead_coordinators_loans_end_and_it_does_not_come_back",
        ),
        (
            "logs_are_not_locked",
            "epochs_are_durable_with_the_first_record",
            "the_dead_keep_what_was_lent",
            "late_attaches_are_accepted",
        ),
    ),
    22: Rule(
        "A snapshot is cut between batches.",
        (
            _TRANSACTIONS + "test_rule_22_no_batch_begins_while_they_are_held_and_it_is_told_when_none_is_under_way",
            _TRANSACTIONS
            + "test_rule_22_a_new_coordinator_is_asked_to_hold__a_partition_in_doubt_attaches__only_then_it_is_told",
            _LENDING + "test_a_snapshot_that_was_cut_within_a_batch_is_damaged",
        ),
        (
            "snapshots_are_cut_within_batches",
            "snapshots_are_cut_before_decisions_are_known",
            "batches_go_on_before_all_parts_are_cut",
        ),
    ),
    23: Rule(
        "A call runs once, however often it arrives; final errors are remembered as results are.",
        (
            _LENDING + "test_a_retry_of_a_call_that_waits_for_a_lent_key_joins_it",
            _TRANSACTIONS + "test_rule_23_a_retry_of_a_pending_call_joins_it",
            _TRANSACTIONS + "test_rule_23_a_retry_gets_the_first_result",
            _TRANSACTIONS + "test_rule_23_a_retry_that_was_under_way_gets_the_first_error",
        ),
        ("retries_run_again",),
    ),
    24: Rule(
        "Frames of a former session are dropped, and those of this one are numbered.",
        (
            _LENDING + "test_frames_twice__of_another_session__and_after_a_gap",
            _TRANSACTIONS + "test_frames_of_an_earlier_session_are_dropped",
        ),
        ("restarted_partitions_answer_old_orders",),
    ),
    25: Rule(
        "A run that has missed something does not count, whatever its body makes of it.",
        (
            _TRANSACTIONS + "test_rule_25_a_body_that_swallows_its_miss_runs_again",
            _EXECUTOR + "test_a_swallowed_miss_is_rerun_whatever_the_body_does_next",
        ),
        ("stand_ins_are_taken_for_rows",),
    ),
    26: Rule(
        "A runaway is not run again; runs of one call share one clock; exceptions meet the user's frames only.",
        (
            _TRANSACTIONS + "test_rule_26_a_runaway_is_not_run_again",
            _EXECUTOR + "test_a_retry_of_a_call_that_killed_the_process_is_not_run",
            "voltpy/test_timeout.py::test_rule_26_reruns_share_one_clock",
            "voltpy/test_timeout.py::test_a_call_that_runs_too_long_is_ended_without_a_trace",
            "voltpy/test_timeout.py::test_a_process_that_stands_still_before_it_runs_a_call_names_none",
        ),
        (
            "runaways_are_forgotten",
            "runs_have_a_timeout_each",
            "runs_are_told_another_time",
            "exceptions_are_raised_anywhere",
        ),
    ),
}  # 15 is left out: bodies run on stand-ins, and so find what they need in few rounds
