import os
import signal

import pytest

from data_prep import pool
from fsdit.errors import DataError


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_a_task_that_ends_its_process_is_found_and_the_others_are_done():
    done = dict(pool.results(square_or_die, range(6), workers=2))
    assert done == {0: 0, 1: 1, 2: 4, 3: None, 4: 16, 5: 25}


def test_tasks_are_taken_as_they_are_needed():
    taken = []
    stream = pool.results(abs, (taken.append(i) or i for i in range(100)), workers=2)
    next(stream)
    assert len(taken) <= 2 * 2
    stream.close()


def refuse(number: int) -> int:
    raise DataError(f"number {number}")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_task_is_raised(workers):
    with pytest.raises(DataError, match="number 7"):
        list(pool.results(refuse, [7], workers))
