"""A page to try a model on: draw or drop one to five pictures, and see samples appear.

    python -m fsdit.app
    python -m fsdit.app --model=exported --port=8000

Needs an extra: pip install 'fsdit[app]'. The page is at http://127.0.0.1:7860 and for this
machine only, unless --host says otherwise. It loads nothing from the network.
"""

import importlib.util
import os
import socket
import tempfile

from absl import flags

from fsdit import program
from fsdit.errors import ConfigError, system_text
from fsdit.weights import shipped

_MODEL = program.define_path(
    "model",
    "glyphs",
    "Folder of an exported model, or a model that comes with the package: glyphs.",
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve on; with 0.0.0.0, all who reach this machine can use it."
)
_PORT = flags.DEFINE_integer("port", 7860, "Port to serve on.", lower_bound=1, upper_bound=65535)
_OVERRIDES = program.define_overrides()


def _check_port(host: str, port: int) -> None:
    """Raises ConfigError where nothing can be served at this address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"--host={host} --port={port}: {system_text(error)}; name another"
        ) from None


def main(argv: list[str]) -> None:
    del argv
    model = _MODEL.value
    shipped.located(model)  # reports an unknown name at once, and below a mistake in settings
    from fsdit.sampling import exported

    exported.read_settings(model, _OVERRIDES())
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs an extra: pip install 'fsdit[app]'")
    _check_port(_HOST.value, _PORT.value)
    with tempfile.TemporaryDirectory(prefix="fsdit-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # deleted with all that visitors left there
        from fsdit.page import blocks
        from fsdit.parallel import backend

        backend.open_devices()
        generator = exported.load(model, _OVERRIDES())
        page = blocks.build(generator, model, _OVERRIDES(), shipped.examples(model))
        print(f"page: http://{_HOST.value}:{_PORT.value} (Ctrl-C ends it)", flush=True)
        blocks.serve(page, _HOST.value, _PORT.value)


if __name__ == "__main__":
    program.run(main)
