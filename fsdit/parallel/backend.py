"""Sets JAX's own settings and starts its backend, for every program that touches devices.

JAX reads settings from the environment (JAX_ENABLE_X64=1), where a login script or a cluster
may have put them for other programs. Those that would silently change the numbers of a run,
or break it in the middle, get the values that this project was written and tested for.
"""

import sys
from collections.abc import Iterable
from typing import Any

import jax

from fsdit.checks import CUDNN_WIDEST_BEFORE_HOPPER, CUDNN_WIDTHS, head_widths, heads_would
from fsdit.config import Config
from fsdit.errors import ConfigError, first_line

# Setting -> the value that is enforced, JAX's default. So a run computes the same wherever it
# is resumed or sampled from.
PINNED: dict[str, Any] = {
    # Types of arrays: others would make other states, checkpoints and programs.
    "jax_enable_x64": False,
    "jax_explicit_x64_dtypes": "warn",
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_matmul_precision": None,
    "jax_allow_f16_reductions": True,
    "jax_softmax_custom_jvp": False,
    # Random numbers: all of them are derived from the seed (`fsdit.randomness`).
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_enable_custom_prng": False,
    "jax_legacy_prng_key": "allow",
    "jax_high_dynamic_range_gumbel": False,
    # Checks and debugging aids. They would end a program at a NaN that the train step is made
    # to skip, run a step twice although its state was donated, or multiply the work.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_error_checking_behavior_nan": "ignore",
    "jax_error_checking_behavior_divide": "ignore",
    "jax_error_checking_behavior_oob": "ignore",
    "jax_debug_key_reuse": False,
    "jax_check_tracer_leaks": False,
    "jax_disable_jit": False,
    "jax_no_tracing": False,
    "jax_no_execution": False,
    "jax_default_device": None,
    # Transfer guards: the training loop sets its own, and a start has to transfer arrays.
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_array_garbage_collection_guard": None,
    "jax_thread_guard": False,
    # How a job learns of a preemption, and how it ends when one of its processes is lost.
    "jax_enable_preemption_service": True,
    "jax_enable_recoverability": False,
}


def pin_settings() -> None:
    """Sets JAX's settings to the values of PINNED, with a warning for each that differed."""
    for name, value in PINNED.items():
        if name not in jax.config.values:  # this version of JAX has no such setting
            continue
        found = _plain(jax.config.values[name])
        if found != value:
            jax.config.update(name, value)
            kept = "its default" if value is None else value
            text = f"warning: {name.upper()}={found} is not used: fsdit keeps {kept}"
            print(text, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """The value of a setting as it is written in text: an enumeration's member by its name."""
    return value.name.lower() if hasattr(value, "name") else value


def open_devices() -> None:
    """Pins JAX's settings and starts its backend; to be called before the first array.

    Raises ConfigError where this machine has none of the wanted platforms.
    """
    pin_settings()
    wanted = jax.config.jax_platforms
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        text = first_line(error)
        if not wanted or not (isinstance(error, AssertionError) or "nable to init" in text):
            raise
        raise ConfigError(
            f"JAX_PLATFORMS={wanted}: no such backend here ({_reason(error, text)}); "
            "unset JAX_PLATFORMS to take what this machine has"
        ) from None


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, AssertionError):
        return "its plugin for JAX is not installed, or finds no device"
    return text.partition(" (set JAX_PLATFORMS")[0]


# Compute capabilities of A100, the oldest GPU that cuDNN's attention supports, and of Hopper.
_AMPERE, _HOPPER = (8, 0), (9, 0)


def check_attention(config: Config, devices: Iterable[jax.Device]) -> None:
    """Raises ConfigError where `config.model.attention` cannot run on one of the devices.

    `fsdit.checks.validate` has checked what does not depend on devices.
    """
    for device in devices:
        if config.model.attention == "cudnn":
            check_cudnn(config, device.device_kind, cuda_capability(device))
        if config.model.attention == "packed" and device.platform != "tpu":
            raise ConfigError(
                "config.model.attention=packed needs TPUs, and this device is "
                f"{device.device_kind}: set config.model.attention=plain"
            )


def cuda_capability(device: jax.Device) -> tuple[int, int]:
    """(major, minor) compute capability of an NVIDIA GPU; (0, 0) for any other device."""
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return (0, 0)
    major, minor = device.compute_capability.split(".")
    return int(major), int(minor)


def check_cudnn(config: Config, kind: str, capability: tuple[int, int]) -> None:
    """Raises ConfigError where cuDNN's attention cannot run on devices of this kind."""
    if capability < _AMPERE:
        raise ConfigError(
            "config.model.attention=cudnn needs NVIDIA GPUs of compute capability 8.0 (A100) or "
            f"later, and this device is {kind}: set config.model.attention=plain"
        )
    narrow = [n for n in CUDNN_WIDTHS if n <= CUDNN_WIDEST_BEFORE_HOPPER]
    for setting, heads, width in head_widths(config):
        if width > CUDNN_WIDEST_BEFORE_HOPPER and capability < _HOPPER:
            raise ConfigError(
                f"config.model.attention=cudnn: heads of width {width} need a GPU of compute "
                f"capability 9.0 (H100) or later, and this device is {kind}: change "
                f"{setting}={heads}, {heads_would(heads, width, narrow.__contains__)}, "
                "or set config.model.attention=plain"
            )
