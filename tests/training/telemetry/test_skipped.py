import pytest

from fsdit.errors import NonFiniteError
from fsdit.training.telemetry.skipped import SkippedSteps


def seen(flags, most_in_row=10, total=0):
    """Return SkippedSteps that saw steps skipped (1) or not (0), after `total` earlier ones."""
    skipped, in_row = SkippedSteps(most_in_row), 0
    for step, flag in enumerate(flags, total + 1):
        in_row = (in_row + 1) * flag
        total += flag
        skipped.see(step, {"nonfinite": total, "nonfinite_in_row": in_row})
    return skipped


def test_skipped_steps_are_reported_at_once_in_the_note_and_in_the_summary(capsys):
    skipped = seen([0, 0, 1, 0, 1, 1, 0])
    assert capsys.readouterr().out.count("warning: step 3 was skipped: its loss") == 1
    assert skipped.note == "  3 skipped"
    assert skipped.summary(7).startswith("warning: 3 of 7 steps were skipped: ")


def test_a_run_without_skipped_steps_says_nothing(capsys):
    skipped = seen([0] * 5)
    assert (skipped.note, skipped.summary(5), capsys.readouterr().out) == ("", "", "")


def test_steps_skipped_by_earlier_starts_count_but_are_not_reported_again(capsys):
    skipped = seen([0, 0], total=4)
    assert skipped.note == "  4 skipped" and "4 of 9 steps" in skipped.summary(9)
    assert capsys.readouterr().out == ""


def test_too_many_in_a_row_stop_the_run_and_name_the_last_valid_step():
    with pytest.raises(
        NonFiniteError, match=r"step 6: 4 steps in a row .* those of step 2; .*rate"
    ):
        seen([1, 0, 1, 1, 1, 1], most_in_row=4)
    seen([1, 1, 1, 0, 1, 1, 1], most_in_row=4)
