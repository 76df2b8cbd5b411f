"""Cycles of schedules: recorded ones, shortened, with all their loops and branches."""

from pathlib import Path

import pytest

from fsdit.planning.schedule import bundles
from fsdit.planning.schedule.bundles import Schedule, ScheduleError

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> list[str]:
    return (RECORDED / f"{name}-01-final_bundles.txt").read_text().splitlines()


def test_an_operation_without_loops_takes_a_cycle_for_each_bundle():
    assert bundles.read(recorded("1-copy.11"), 1.0) == Schedule(10)


def test_a_pipelined_loop_runs_once_for_each_window():
    """Kept are 11 bundles around the loop and 57 in it; it tests for 98, of 96 windows."""
    assert bundles.read(recorded("v5e-product"), 1.0) == Schedule(11 + 96 * 57)


def test_the_busiest_matrix_unit_sets_the_time_where_it_takes_longer():
    """Three products of 16 rows on unit 0: 48 rows, at a quarter of a row a cycle."""
    assert bundles.read(recorded("v5e-product"), 0.25) == Schedule(11 + 96 * 48 * 4)


def test_what_a_branch_skips_until_the_last_of_16_windows_counts_a_16th():
    """Of the kept bundles of the loop, 14 lie behind the branch; there are 4 x 6 x 16 windows."""
    lines = recorded("v6e-product")
    found = bundles.read(lines, 2.0)
    assert found.unknown_loops == 0
    unskipped = [line.replace("scmp.ne.s32", "scmp.lt.s32") for line in lines]
    assert bundles.read(unskipped, 2.0).cycles - found.cycles == 384 * 14 * 15 // 16


def loop(*inner: str, test: str = "") -> list[str]:
    body = [f"  0x{i + 2:x}   : > {{ {line} }}" for i, line in enumerate(inner)]
    return [
        "     0   :  { entry } /* entry bundle: %f = fusion() */",
        "   0x1 LB: > { body }",
        *body,
        f"  0x20   : > {{ {test} }}",
        "  0x21   :  { } /* exit bundle: %f = fusion() */",
    ]


TEST = "%p1_p4 = scmp.ge.s32.totalorder %s14_s16, 7 /* loop exit test */"


def test_loops_inside_loops_multiply():
    lines = loop(test=TEST)
    lines[2:2] = [
        "   0x9 LB: > > { inner }",
        "   0xa   : > > { %p2_p4 = scmp.ge.s32.totalorder %s1_s2, 3 /* loop exit test */ }",
    ]
    # The exit bundle is empty and so counts where the bundle before it does.
    assert bundles.read(lines, 1.0) == Schedule(1 + 7 * (3 + 3 * 2))


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    assert bundles.read(loop("a", "b"), 1.0) == Schedule(1 + 5, unknown_loops=1)


@pytest.mark.parametrize("kept", [0, 9, 30])
def test_a_schedule_that_is_cut_off_is_refused(kept):
    with pytest.raises(ScheduleError, match="no last bundle"):
        bundles.read(recorded("v5e-product")[:kept], 1.0)


def test_another_form_is_refused():
    with pytest.raises(ScheduleError):
        bundles.read(["bundle 0: entry", "bundle 1: exit"], 1.0)
