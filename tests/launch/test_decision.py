import signal

import pytest

from fsdit.launch.decision import Decision, Exit, Patience, decide

DONE, PREEMPTED, ERROR = Exit(0), Exit(75), Exit(1, "error: config.seed is wrong")
KILLED, ABORTED, TRACEBACK = Exit(-signal.SIGKILL), Exit(-signal.SIGABRT), Exit(1)
HELD, TIME_IS_UP = Exit(69, "error: the folder is in use"), Exit(75, time_is_up=True)
FOLLOWING = Exit(1, "error: cannot write a checkpoint: its peer is gone")

# (exits, number of running processes, decision, decision of a launcher asked to leave).
CASES = {
    "nothing": ([], 2, Decision.WAIT, Decision.WAIT),
    "one is done": ([DONE], 1, Decision.WAIT, Decision.WAIT),
    "one is preempted": ([PREEMPTED], 1, Decision.WAIT, Decision.WAIT),
    "all done": ([DONE, DONE], 0, Decision.DONE, Decision.DONE),
    "all preempted": ([PREEMPTED, PREEMPTED], 0, Decision.RESTART, Decision.LEAVE),
    "one done, one preempted": ([DONE, PREEMPTED], 0, Decision.RESTART, Decision.LEAVE),
    "one killed": ([KILLED], 3, Decision.RESTART, Decision.LEAVE),
    "killed before it could hear": ([Exit(-signal.SIGTERM)], 1, Decision.RESTART, Decision.LEAVE),
    "a crash": ([Exit(-signal.SIGSEGV)], 1, Decision.RESTART, Decision.LEAVE),
    "a peer of it aborts": ([KILLED, ABORTED], 0, Decision.RESTART, Decision.LEAVE),
    "a peer of it sees an error": ([KILLED, FOLLOWING], 2, Decision.RESTART, Decision.LEAVE),
    "a peer aborts first": ([ABORTED], 1, Decision.RESTART, Decision.LEAVE),
    "a traceback": ([TRACEBACK], 1, Decision.RESTART, Decision.LEAVE),
    "a user's error": ([ERROR], 3, Decision.STOP, Decision.STOP),
    "a user's error on all": ([ERROR, ERROR], 0, Decision.STOP, Decision.STOP),
    "a user's error, peers abort": ([ERROR, ABORTED], 0, Decision.STOP, Decision.STOP),
    "a scheduler's command": ([Exit(128 + signal.SIGKILL)], 0, Decision.RESTART, Decision.LEAVE),
    "the workdir is held": ([HELD], 0, Decision.QUEUE, Decision.LEAVE),
    "the workdir is held, peers abort": ([HELD, ABORTED], 0, Decision.QUEUE, Decision.LEAVE),
    "the workdir is held, a peer runs": ([HELD], 1, Decision.QUEUE, Decision.LEAVE),
    "time is up": ([TIME_IS_UP, PREEMPTED], 0, Decision.LEAVE, Decision.LEAVE),
    "time is up, a peer still saves": ([TIME_IS_UP], 1, Decision.WAIT, Decision.WAIT),
    "time is up, and a peer was killed": ([TIME_IS_UP, KILLED], 0, Decision.LEAVE, Decision.LEAVE),
    "its task's error": ([Exit(134, ERROR.error)], 0, Decision.STOP, Decision.STOP),
}


@pytest.mark.parametrize(("ended", "running", "alone", "asked"), CASES.values(), ids=CASES.keys())
def test_every_end_has_its_decision(ended, running, alone, asked):
    assert decide(ended, running, asked_to_leave=False) is alone
    assert decide(ended, running, asked_to_leave=True) is asked
    assert decide(ended[::-1], running, asked_to_leave=False) is alone


def test_pauses_double_up_to_a_bound_and_begin_anew_after_progress():
    patience = Patience(restarts=4, first_pause=2.0, longest_pause=9.0)
    assert [patience.pause(n) for n in range(6)] == [0, 2, 4, 8, 9, 9]
    assert patience.pause(10**6) == 9
    assert [patience.exhausted(n) for n in (0, 4, 5)] == [False, False, True]
    assert Patience(restarts=0).exhausted(1)


def test_an_exit_is_described_in_words():
    assert str(KILLED) == "killed by SIGKILL"
    assert str(PREEMPTED) == "exit status 75"
    assert str(Exit(-200)) == "killed by signal 200"
