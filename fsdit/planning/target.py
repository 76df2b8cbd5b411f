"""Targets of plans: the devices of a TPU slice that need not exist, or those of this host."""

import dataclasses
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from fsdit.errors import ConfigError, first_line
from fsdit.parallel import backend

LOCAL = "local"
_SQUARE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# Slices that can be rented (https://cloud.google.com/tpu/docs), of kinds with one device a chip.
KNOWN = {"v5e": _SQUARE, "v6e": _SQUARE, "v5p": _CUBIC}
_ENVIRONMENT = {
    # Without these, libtpu asks the network what machine this is, and prints warnings.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    # libtpu's lock allows one process a TPU. Plans use no TPU, so several may run at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices to plan for. devices: all of them, in JAX's order."""

    name: str
    devices: tuple[jax.Device, ...]

    @property
    def kind(self) -> str:
        """What JAX calls this kind of device."""
        return self.devices[0].device_kind

    @property
    def one_process(self) -> tuple[jax.Device, ...]:
        """The devices of one host."""
        first = self.devices[0].process_index
        return tuple(d for d in self.devices if d.process_index == first)


def open_targets(names: Sequence[str]) -> list[Target]:
    """The targets of names such as "v5e:2x4", or "local".

    To be called before JAX has started a backend. Raises ConfigError for an unknown name, and
    where libtpu is missing.
    """
    for name in names:
        _check(name)
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is part of a plan
    if LOCAL not in names:  # do not use the accelerators of this host
        jax.config.update("jax_platforms", "cpu")
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
    backend.open_devices()
    return [Target(name, _devices(name)) for name in names]


def _check(name: str) -> None:
    kind, _, layout = name.partition(":")
    if name != LOCAL and layout not in KNOWN.get(kind, ()):
        known = "; ".join(f"{kind}:{', '.join(layouts)}" for kind, layouts in KNOWN.items())
        raise ConfigError(f"--topology={name} is not known; known are {LOCAL}; {known}")


def _devices(name: str) -> tuple[jax.Device, ...]:
    if name == LOCAL:
        return tuple(jax.devices())
    try:
        return tuple(topologies.get_topology_desc(name, "tpu").devices)
    except Exception as error:  # which exception it is depends on what is missing
        raise ConfigError(
            f"--topology={name} needs libtpu, which compiles for it without a TPU "
            f"({first_line(error)}): "
            "pip install --constraint constraints.txt 'fsdit[tpu]'"
        ) from None
