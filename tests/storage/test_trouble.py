"""Errors of a store that does not answer are told from errors of damaged content."""

import aiohttp
import pytest
from gcsfs.retry import HttpError
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.protobuf.message import DecodeError

from fsdit import storage

# (error, whether the store did not answer, whether nothing is known of the content).
CASES = {
    "unavailable": (HttpError({"code": 503, "message": "x"}), True, True),
    "too many requests": (HttpError({"code": 429, "message": "x"}), True, True),
    "forbidden": (HttpError({"code": 403, "message": "x"}), False, True),
    "no object": (HttpError({"code": 404, "message": "x"}), False, False),
    "cut off": (aiohttp.ClientPayloadError("x"), True, True),
    "no answer": (TimeoutError("x"), True, True),
    "the client gave up": (api.RetryError("x", None), True, True),
    "no token": (auth.TransportError("x"), True, True),
    "TensorStore, no answer": (ValueError("UNAVAILABLE: x"), True, True),
    "TensorStore, no access": (ValueError("PERMISSION_DENIED: x"), False, True),
    "damaged JSON": (ValueError("Expecting value"), False, False),
    "a damaged message": (DecodeError("x"), False, False),
    "no file": (FileNotFoundError("x"), False, False),
}


@pytest.mark.parametrize(("error", "unavailable", "unknown"), CASES.values(), ids=CASES.keys())
def test_each_error_is_told(error, unavailable, unknown):
    wrapped = RuntimeError("by a library")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert storage.is_unavailable(each) == unavailable
        assert storage.is_out_of_reach(each) == unknown
