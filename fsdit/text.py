"""Text that comes from others, such as names of files and classes, made safe to show.

A terminal obeys some characters in it: they colour the output, set the title, move the cursor
or turn the direction of writing. These are written as escapes, "\\x1b" and the like; letters of
every script stay.
"""

import re

# What programs write themselves to start the line of a terminal anew (ECMA-48: CR, EL).
ERASED_LINE = "\r\x1b[K"

# Control characters without tab, line feed and carriage return; line and paragraph separators;
# embeddings, overrides and isolates of the direction of writing.
_OBEYED = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
# Tab, line feed, carriage return; marks of direction, which do nothing alone but cannot be
# seen; halves of characters, which are no Unicode text.
_ODD_IN_A_NAME = "\t\n\r\u200e\u200f\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_OBEYED}]")
_IN_NAMES = re.compile(f"[{_OBEYED}{_ODD_IN_A_NAME}]")


def harmless(text: str) -> str:
    """Returns lines of text in which a terminal finds nothing to obey."""
    return _IN_TEXT.sub(_escape, text)


def printable(name: str) -> str:
    """Returns a name, or a cell of a table, as one line of Unicode text that can be seen."""
    return _IN_NAMES.sub(_escape, name)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
