"""Run fsdit.main with a reader that hangs at one example of about the 20th step."""

import dataclasses
import threading

from fsdit import main, program
from fsdit.training import loop

_STUCK_AT = 16 * 20
_open_inputs = loop.open_inputs


@dataclasses.dataclass(frozen=True)
class StuckReader:
    reader: object

    def __call__(self, index):
        if index == _STUCK_AT:
            the_disk_is_gone()
        return self.reader(index)

    def __getattr__(self, name):
        return getattr(self.reader, name)


def the_disk_is_gone():
    threading.Event().wait()


def open_inputs(*arguments, **options):
    inputs = _open_inputs(*arguments, **options)
    return dataclasses.replace(inputs, training=StuckReader(inputs.training))


if __name__ == "__main__":
    loop.open_inputs = open_inputs
    program.run(main.main)
