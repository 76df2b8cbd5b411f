"""The lists skipped.csv and duplicates.csv, in which a conversion reports single files."""

import csv
import io
from collections.abc import Sequence

from etils import epath

from data_prep.conversion.inputs.entries import Row
from fsdit.text import printable

# A spreadsheet takes a cell that begins so for a formula. The last four are the full-width
# forms of the first four.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_table(path: epath.Path, last_column: str, rows: Sequence[Row]) -> None:
    """Writes a CSV file of (split, class, file, last_column) without spreadsheet formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("split", "class", "file", last_column))
    writer.writerows([_cell(value) for value in row] for row in rows)
    path.write_bytes(text.getvalue().encode())


def _cell(text: str) -> str:
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text
