"""Where the time of a call goes on an NVIDIA GPU: seconds of its kernels, by what they do.

JAX's profiler and PyTorch's both name the kernels that ran, and their names tell what they do.
Kernels of one call that overlap count each with its full time.
"""

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

# (name, seconds) of one run of a kernel.
Event = tuple[str, float]

# (a pattern of a kernel's name, what it does); the first that is found counts. torch.compile
# begins the names of what it has fused with "triton_poi_" or, where it holds sums,
# "triton_red_" or "triton_per_"; the operations follow, "_to_copy" and "dot" among them.
_KINDS = (
    (r"^triton_(red|per)_", "sums"),
    (r"^triton_poi_", "elementwise"),
    (r"flash|fmha|sdpa", "attention"),
    (r"gemm|nvjet|cutlass|cublas|xmma|dot|splitk", "matrix products"),
    (r"memcpy|memset|copy|transpose", "copies"),
    (r"reduce", "sums"),
    (r"", "elementwise"),
)


def by_kind(events: Iterable[Event], calls: int = 1) -> dict[str, float]:
    """Seconds a call of each kind of kernel."""
    seconds = {kind: 0.0 for _, kind in _KINDS}
    for name, duration in events:
        kind = next(kind for pattern, kind in _KINDS if re.search(pattern, name.lower()))
        seconds[kind] += duration / calls
    return seconds


def longest(events: Iterable[Event], calls: int = 1, count: int = 12) -> list[Event]:
    """The names of the kernels that take longest, with their seconds a call."""
    seconds: dict[str, float] = {}
    for name, duration in events:
        seconds[name] = seconds.get(name, 0.0) + duration / calls
    return sorted(seconds.items(), key=lambda item: -item[1])[:count]


def of_jax(call: Callable[[], Any]) -> list[Event]:
    """The kernels that a JAX call runs; none where JAX's profiler sees no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        return [
            (event.name, event.duration_ns / 1e9)
            for plane in profile.planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]


def of_pytorch(call: Callable[[], Any]) -> list[Event]:
    """The kernels that a PyTorch call runs; none where it uses no GPU."""
    from torch import profiler

    with profiler.profile(activities=list(profiler.supported_activities())) as found:
        call()
    return [
        (event.name, event.device_time_total / 1e6)
        for event in found.events()
        if "CUDA" in str(event.device_type) and not event.is_user_annotation
    ]
