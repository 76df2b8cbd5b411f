"""Predictions of a recorded program, and of short ones whose time is plain to see.

recorded/scan.hlo.txt is `lax.scan(lambda x, w: tanh(x @ w), x, ws)` over five (128, 128)
matrices, as libtpu 0.0.42.1 printed it for v5e; beside it are the schedules that it wrote.
"""

import shutil
from pathlib import Path

import jax
import pytest

from fsdit.parallel.chips import find_chip
from fsdit.planning import hlo
from fsdit.planning.predictor import Predictor
from fsdit.planning.schedule import dump, prediction
from fsdit.planning.schedule.bundles import Schedule
from fsdit.planning.schedule.core import CORES
from fsdit.planning.schedule.dump import Dump, NoPredictionError
from fsdit.planning.schedule.matching import Matcher
from fsdit.planning.schedule.timeline import Timeline
from fsdit.planning.schedule.traffic import Traffic

RECORDED = Path(__file__).parent / "recorded"
SCAN = (RECORDED / "scan.hlo.txt").read_text()
CHIP, CORE = find_chip("TPU v5 lite"), CORES["v5e"]


@pytest.fixture
def folder(tmp_path):
    for path in RECORDED.glob("1-*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_a_recorded_program_takes_what_adding_up_by_hand_gives(folder):
    made = prediction.predict(SCAN, Dump(folder).schedules(CORE), CHIP, CORE)
    array = 128 * 128 * 2
    # A step is a copy of 10 cycles and a fusion of 72, longer than its 32 KiB of weights need.
    steps = 5 * (10 + 72) / CORE.clock
    # The loop waits for its copied argument, and the result is copied back.
    copies = 2 * array / CHIP.bandwidth
    assert made.seconds == pytest.approx(steps + copies, rel=1e-3)
    assert made.seconds == pytest.approx(sum(part.seconds for part in made.parts))
    largest = made.operations[0]
    assert (largest.name, largest.count, largest.basis) == ("fusion.13", 5, "own")
    assert largest.source == "jit(scanned)/while/body/closed_call/dot_general"
    assert {part.name for part in made.parts} >= {"copies", "waits for copies"}


def test_a_cut_off_schedule_gives_one_line_that_names_the_operation(folder):
    path = folder / "1-fusion.13-01-final_bundles.txt"
    path.write_text(path.read_text()[:4000])
    with pytest.raises(NoPredictionError, match=r"schedule of fusion\.13 is unreadable"):
        Dump(folder).schedules(CORE)


def test_a_libtpu_that_writes_nothing_gives_one_line(tmp_path):
    with pytest.raises(NoPredictionError, match="wrote no schedules"):
        Dump(tmp_path).schedules(CORE)


def test_another_kind_of_device_gives_one_line(tmp_path):
    compiled = jax.jit(lambda x: x + 1).lower(1.0).compile()
    outcome = Predictor(Dump(tmp_path)).predict(compiled, jax.devices())
    kind = jax.devices()[0].device_kind
    assert outcome.prediction is None
    assert outcome.trouble == f"times are predicted for v5e, v6e only, and this is {kind}"


def test_schedules_of_another_program_are_refused():
    with pytest.raises(NoPredictionError, match="name no operation of the program"):
        prediction.predict(SCAN, {"fusion.99": Schedule(10)}, CHIP, CORE)


def test_a_libtpu_without_the_flag_is_not_given_it(tmp_path, monkeypatch):
    """libtpu ends the process at a flag that it does not know."""
    library = tmp_path / "libtpu.so"
    library.write_bytes(b"\x7fELF xla_jf_dump_to xla_jf_dump_llo_text ")
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(library))
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    with dump.requested() as written:
        assert "LIBTPU_INIT_ARGS" not in dump.os.environ
        with pytest.raises(NoPredictionError, match="no flag xla_jf_dump_llo_pass_label_regex"):
            written.schedules(CORE)


def test_flags_of_the_user_stay_and_come_back(tmp_path, monkeypatch):
    library = tmp_path / "libtpu.so"
    library.write_bytes(" ".join(dump._FLAGS).encode())
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(library))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--theirs=1")
    with dump.requested():
        assert dump.os.environ["LIBTPU_INIT_ARGS"].startswith("--theirs=1 --xla_jf_dump_to=")
    assert dump.os.environ["LIBTPU_INIT_ARGS"] == "--theirs=1"


# Products that need c cycles each, a copy of 64 MiB into fast memory, and collectives over
# eight chips, synchronous and in two halves.
MIB64 = 64 * 2**20
PROGRAM = """HloModule jit_f, num_partitions=8

%work (p: f32[8,128]) -> f32[8,128] {
  ROOT %p = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
}

ENTRY %main (a: f32[131072,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[131072,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)
  STARTS
  %work.1 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%b), kind=kLoop, calls=%work
  ENDS
  ROOT %work.2 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%work.1), kind=kLoop, calls=%work
}
"""
COPY = (
    "%s = (f32[131072,128]{1,0:T(8,128)S(1)}, f32[131072,128]{1,0:T(8,128)}, u32[]{:S(2)}) "
    "copy-start(%a)",
    "%d = f32[131072,128]{1,0:T(8,128)S(1)} copy-done(%s)",
)
GATHER = (
    "%s = (f32[131072,128]{1,0:T(8,128)}, f32[1048576,128]{1,0:T(8,128)}) "
    "all-gather-start(%a), replica_groups={}, dimensions={0}",
    "%d = f32[1048576,128]{1,0:T(8,128)} all-gather-done(%s)",
)
REDUCED = (
    "%s = f32[131072,128]{1,0:T(8,128)} all-reduce(%a), replica_groups={}, to_apply=%add",
    "",
)


def seconds(lines: tuple[str, str], cycles: int) -> dict[str, float]:
    """Predicted seconds by name of the events."""
    text = PROGRAM.replace("STARTS", lines[0]).replace("ENDS", lines[1])
    program = hlo.parse(text)
    matcher = Matcher(program, {"work.1": Schedule(cycles)})  # work.2 is equal to it
    events = Timeline(program, matcher, CHIP, CORE).events()
    return {event.name: event.seconds for event in events}


@pytest.mark.parametrize(
    ("lines", "wait", "alone"),
    [
        (COPY, "waits for copies", MIB64 / CHIP.bandwidth),
        (GATHER, "waits for links", 7 * MIB64 / CORE.ring),
    ],
    ids=["copy", "all-gather"],
)
def test_what_is_started_early_hides_behind_work(lines, wait, alone):
    """Work of half its time leaves half of it to wait for, and work of twice its time nothing."""
    half, twice = (round(share * alone * CORE.clock) for share in (0.5, 2))
    found = seconds(lines, half)
    assert found[wait] == pytest.approx(alone / 2, rel=1e-3)
    assert found["work.1"] == found["work.2"] == pytest.approx(alone / 2, rel=1e-3)
    assert wait not in seconds(lines, twice)


def test_a_collective_that_is_not_asynchronous_hides_behind_nothing():
    found = seconds(REDUCED, 10**9)
    assert found["s"] == pytest.approx(2 * 7 / 8 * MIB64 / CORE.ring)
    assert "waits for links" not in found


BRANCHES = """HloModule jit_f

%short (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %n.1 = f32[8,128]{1,0:T(8,128)S(1)} negate(%p)
}

%long (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %n.2 = f32[8,128]{1,0:T(8,128)S(1)} sine(%p)
}

ENTRY %main (i: s32[], a: f32[8,128]) -> f32[8,128] {
  %i = s32[]{:T(128)S(6)} parameter(0)
  %a = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %c = f32[8,128]{1,0:T(8,128)S(1)} conditional(%i, %a, %a), branch_computations={%short, %long}
}
"""  # noqa: E501


def test_a_conditional_takes_as_long_as_its_longest_branch():
    program = hlo.parse(BRANCHES)
    matcher = Matcher(program, {"n.1": Schedule(30), "n.2": Schedule(70)})
    (event,) = Timeline(program, matcher, CHIP, CORE).events()
    assert (event.name, event.seconds) == ("n.2", pytest.approx(70 / CORE.clock))


SLICES = """HloModule jit_f

%body (stack: f32[12,1024,128], i: s32[], x: f32[1,1024,128]) -> f32[12,1024,128] {
  %stack = f32[12,1024,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[1,1024,128]{2,1,0:T(8,128)S(1)} parameter(2)
  %old = f32[1,1024,128]{2,1,0:T(8,128)} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,1024,128}
  %sum = f32[1,1024,128]{2,1,0:T(8,128)} add(%old, %x)
  ROOT %new = f32[12,1024,128]{2,1,0:T(8,128)} dynamic-update-slice(%stack, %sum, %i, %i, %i)
}

ENTRY %main (stack: f32[12,1024,128], i: s32[], x: f32[1,1024,128], y: f32[100,100]) -> f32[100,100] {
  %stack = f32[12,1024,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %x = f32[1,1024,128]{2,1,0:T(8,128)S(1)} parameter(2)
  %y = f32[100,100]{1,0:T(8,128)} parameter(3)
  %updated = f32[12,1024,128]{2,1,0:T(8,128)} fusion(%stack, %i, %x), kind=kLoop, calls=%body
  ROOT %z = f32[100,100]{1,0:T(8,128)} negate(%y)
}
"""  # noqa: E501


def test_slices_and_padded_tiles_are_counted_as_they_are_moved():
    """One slice is read and written, not the stack; (100, 100) is stored as (104, 128)."""
    program = hlo.parse(SLICES)
    traffic = Traffic(program)
    moved = {
        name: traffic.of(program.entry, program.entry.instructions[name])
        for name in ("updated", "z")
    }
    assert moved == {"updated": 2 * 1024 * 128 * 4, "z": 2 * 104 * 128 * 4}
