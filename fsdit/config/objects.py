"""JSON objects that others wrote."""

import json
from typing import Any


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that `text` holds.

    Raises ValueError where it is not JSON or nested too deeply, TypeError where it is JSON but
    not an object.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    return value
