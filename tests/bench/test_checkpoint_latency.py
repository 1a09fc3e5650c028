"""`python -m bench checkpoint-latency`, in short."""

from click.testing import CliRunner

from bench.__main__ import main


def test_calls_beside_a_checkpoint_are_told_from_the_others(tmp_path):
    arguments = ["checkpoint-latency", "--memory", "64M", "--ratio", "0.05", "--partitions", "1", "--fsync", "never"]
    arguments += ["--warm-up", "0.5", "--seconds", "2", "--checkpoint-bytes", "4M", "--directory", str(tmp_path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "| with a checkpoint | " in done.stdout
    assert "| with ÷ without | " in done.stdout
