"""Aligned columns of text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], words: int) -> str:
    """Rows with aligned columns: the first `words` columns to the left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
