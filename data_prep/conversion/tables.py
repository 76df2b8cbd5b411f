"""skipped.csv and duplicates.csv: what the conversion says of single files."""

import csv
import io
from collections.abc import Sequence

from etils import epath

from data_prep.conversion.inputs.entries import Row
from fsdit.text import printable

# What makes a spreadsheet take a cell for a formula, at its beginning; the last four are the
# wide forms of the first.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_table(path: epath.Path, last_column: str, rows: Sequence[Row]) -> None:
    """A CSV of (split, class, file, last_column), in which a spreadsheet finds no formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("split", "class", "file", last_column))
    writer.writerows([_cell(value) for value in row] for row in rows)
    path.write_bytes(text.getvalue().encode())


def _cell(text: str) -> str:
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text
