"""Tells errors of a store that is out of reach from errors of what it holds."""

import re
from collections.abc import Iterator

from fsdit.errors import causes

# Packages whose errors come from the connection to a store, or from the store's answer.
_CLIENTS = (
    *("gcsfs", "aiohttp", "requests", "urllib3"),
    *("google.api_core", "google.auth", "google.cloud", "google.resumable_media"),
)
# TensorStore gives the kind of an error in its message only.
_NO_ANSWER = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED)\b")
_NO_ACCESS = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b")


def is_out_of_reach(error: BaseException) -> bool:
    """Whether a store did not answer, or allowed no access: nothing is known of the content."""
    return is_unavailable(error) or any(
        status in (401, 403) or _NO_ACCESS.search(str(cause)) for cause, status in _answers(error)
    )


def is_unavailable(error: BaseException) -> bool:
    """Whether a store did not answer, or only with statuses such as 429 and 503."""
    return any(
        isinstance(cause, TimeoutError | ConnectionError)
        or _NO_ANSWER.search(str(cause))
        or (_is_of_client(cause) and (status is None or status == 429 or status >= 500))
        for cause, status in _answers(error)
    )


def _answers(error: BaseException) -> Iterator[tuple[BaseException, int | None]]:
    """Yields each error behind `error`, with the status of HTTP that it holds, if any."""
    for cause in causes(error):
        found = [getattr(cause, name, None) for name in ("code", "status")]
        yield cause, next((int(value) for value in found if isinstance(value, int)), None)


def _is_of_client(error: BaseException) -> bool:
    return f"{type(error).__module__}.".startswith(tuple(f"{name}." for name in _CLIENTS))
