"""Ways to tamper with checkpoints and exported models, and a check of how loading them ends."""

import contextlib
import json
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from fsdit.errors import FsditError
from fsdit.models.pretrained import dinov2
from fsdit.models.pretrained.encoder import abstract_encoder
from fsdit.models.pretrained.preprocessing import Preprocessing, Rectangle
from fsdit.models.pretrained.stored.checkpoint import Checkpoint

_SECONDS = 30  # limit of a load, which takes milliseconds; the machine may be busy
_MEGABYTES = 400  # memory that a load may add; the checkpoints have less than 1 MB

# Values that replace a number, a text, a list or an object of a JSON file.
VALUES = [
    0, -1, 1, 3, 7, 10**9, 10**12, 10**30, -(10**30), 0.0, 0.5, 1e-300, 1e39, 1e300, float("inf"),
    float("-inf"), float("nan"), None, True, False, "", "x", "../..", "\x1b[31m", "\ud800", "a\0b",
    "9" * 5000, [], [0], [10**9] * 3, [[]], [4] * 10_000, {}, {"height": 10**9, "width": 1},
]  # fmt: skip


def write_dinov2(directory: Path) -> Path:
    """A tiny DINOv2 with registers, made without PyTorch."""
    config = dinov2.Dinov2Config(
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
    )
    directory.mkdir(parents=True)
    fields = {n: getattr(config, n) for n in config.__dataclass_fields__}
    _dump(directory / "config.json", {"model_type": "dinov2_with_registers", **fields})
    square = {"height": 32, "width": 32}
    _dump(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": square,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 3,
        },
    )
    checkpoint = Checkpoint(directory, {}, {})
    size = Rectangle(32, 32)
    preprocessing = Preprocessing(size, None, "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)
    _, template = abstract_encoder(checkpoint, config, preprocessing, "float32")
    save_file(_tensors(template, config), directory / "model.safetensors")
    return directory


def _tensors(template: dict, config: dinov2.Dinov2Config) -> dict[str, np.ndarray]:
    """Tensors of ones, in the shapes that PyTorch gives them."""
    leaves = traverse_util.flatten_dict(template)
    shapes = {"/".join(map(str, keys)): leaf.shape for keys, leaf in leaves.items()}
    made = {}
    for path, source in dinov2.mapping(Checkpoint(Path(), {}, {}), config).items():
        shape = shapes[path] if source.layers is None else shapes[path][1:]
        shape = (*shape[:-1], shape[-1] // len(source.names))
        if path == "embed/kernel":
            shape = (config.hidden_size, 3, config.patch_size, config.patch_size)
        elif path in ("cls", "position", "registers"):
            shape = (1,) * (3 - len(shape)) + shape
        elif len(shape) == 2:
            shape = shape[::-1]
        made |= {name: np.ones(shape, np.float32) for _, _, name in source.tensors()}
    return made


def some_values(number: int) -> list[Any]:
    """Return a third of VALUES; any three consecutive numbers together give all of them."""
    return VALUES[number % 3 :: 3]


def attempt(load: Callable[[], Any], mutation: str) -> str | None:
    """Load tampered files; they must give one line of error or finite parameters, and soon.

    Return the line, or None. Raise AssertionError if the load ends in any other way.
    """
    message = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _alarm(mutation):
        try:
            loaded = load()
        except FsditError as error:
            message = str(error)
            assert "\n" not in message and len(message) < 1500, (mutation, message)
        else:
            for leaf in jax.tree.leaves(loaded):
                assert np.isfinite(np.asarray(leaf, np.float32)).all(), mutation
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < _MEGABYTES, f"{mutation}: {grown:.0f} MB"
    return message


@contextlib.contextmanager
def _alarm(mutation: str) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise AssertionError(f"{mutation}: hangs")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def values_in(path: Path) -> list[tuple[str, ...]]:
    """Return the key paths of all values of a JSON file, objects and lists among them."""
    return [place for place in _places(json.loads(path.read_text())) if place]


def _places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    yield above
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _places(each, (*above, key))


def with_value(path: Path, place: tuple, value: Any) -> None:
    """Writes the JSON file with another value at one place."""
    values = json.loads(path.read_text())
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    _dump(path, values)


def _dump(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


def _replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def tamper(path: Path) -> None:
        path.unlink()
        make(path)

    return tamper


def _header(path: Path, change: Callable[[dict], Any]) -> None:
    """Rewrite the header of a safetensors file, and leave the data as it is."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def _each_tensor(change: Callable[[dict], Any]) -> Callable[[dict], None]:
    def apply(header: dict) -> None:
        for name, entry in header.items():
            if name != "__metadata__":
                change(entry)

    return apply


def _weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: save_file({n: change(t) for n, t in load_file(path).items()}, path)


# Ways to tamper with any file.
FILES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda p: p.unlink(),
    "a pipe": _replaced(os.mkfifo),
    "zeros without end": _replaced(lambda p: p.symlink_to("/dev/zero")),
    "noise without end": _replaced(lambda p: p.symlink_to("/dev/urandom")),
    "a folder": _replaced(Path.mkdir),
    "a link to itself": _replaced(lambda p: p.symlink_to(p.name)),
    "a link to nothing": _replaced(lambda p: p.symlink_to("nowhere")),
    "empty": lambda p: p.write_bytes(b""),
    "zeros": lambda p: p.write_bytes(bytes(4096)),
    "cut off": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"more"),
    "huge and sparse": lambda p: os.truncate(p, 2**37),
}
# Contents that replace a JSON file.
JSON: dict[str, bytes] = {
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a deep field": b'{"model_type": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a long number": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "no text": b"\xff\xfe\xff",
    "a list": b"[]",
    "nothing": b"null",
}
# Ways to tamper with a safetensors file.
TENSORS: dict[str, Callable[[Path], Any]] = {
    "header without end": lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:]),
    "header of 2^62": lambda p: p.write_bytes(struct.pack("<Q", 2**62) + p.read_bytes()[8:]),
    "no JSON": lambda p: p.write_bytes(p.read_bytes().replace(b"{", b"[", 1)),
    "deep header": lambda p: p.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000),
    "other type": lambda p: _header(p, _each_tensor(lambda e: e.update(dtype="I32"))),
    "no such type": lambda p: _header(p, _each_tensor(lambda e: e.update(dtype="F7"))),
    "absurd shape": lambda p: _header(p, _each_tensor(lambda e: e.update(shape=[10**18]))),
    "overflowing shape": lambda p: _header(p, _each_tensor(lambda e: e.update(shape=[2**63, 4]))),
    "negative shape": lambda p: _header(p, _each_tensor(lambda e: e.update(shape=[-1]))),
    "empty shape": lambda p: _header(
        p, _each_tensor(lambda e: e.update(shape=[0, 10**12], data_offsets=[0, 0]))
    ),
    "turned shape": lambda p: _header(p, _each_tensor(lambda e: e["shape"].reverse())),
    "other offsets": lambda p: _header(
        p, _each_tensor(lambda e: e.update(data_offsets=[2**40, 2**41]))
    ),
    "all at the start": lambda p: _header(
        p, _each_tensor(lambda e: e.update(data_offsets=[0, e["data_offsets"][1]]))
    ),
    "no tensors": lambda p: _header(p, dict.clear),
    "NaN": _weights(lambda t: np.full_like(t, np.nan)),
    "infinity": _weights(lambda t: np.full_like(t, np.inf)),
    "beyond float32": _weights(lambda t: np.full(t.shape, 1e300)),
    "one NaN": _weights(lambda t: np.where(np.arange(t.size).reshape(t.shape) == 0, np.nan, t)),
}


def flipped(path: Path, seed: int) -> None:
    """Flip one bit among the first 4,000 bytes, where headers are."""
    random = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    data[random.integers(min(len(data), 4_000))] ^= 1 << random.integers(8)
    path.write_bytes(data)
