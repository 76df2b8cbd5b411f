"""fsdit.app as its user starts it. The page itself is in tests/page."""

import importlib.util
import socket

import pytest

from tests.programs import one_line_error, run_module

pytestmark = pytest.mark.medium

HAS_GRADIO = importlib.util.find_spec("gradio") is not None


@pytest.mark.skipif(HAS_GRADIO, reason="Gradio is installed")
def test_without_gradio_one_line_says_what_to_install():
    one_line_error(run_module("fsdit.app"), "pip install 'fsdit[app]'")


@pytest.mark.skipif(not HAS_GRADIO, reason="Gradio is not installed")
def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_line_error(run_module("fsdit.app", f"--port={port}"), f"--port={port}", "name another")


def test_settings_of_training_are_refused_before_the_page_starts():
    done = run_module("fsdit.app", "--config.model.depth=3")
    one_line_error(done, "glyphs was trained otherwise", "config.model.depth")
