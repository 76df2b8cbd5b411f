"""Where the time of a process goes: each moment since it started belongs to one part."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

# What JAX reports of one compilation, at its begin (as a scalar) and at its end.
_COMPILING = frozenset(
    f"/jax/core/compile/{name}_duration"
    for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
_CACHE_EVENTS = {
    "/jax/compilation_cache/compile_requests_use_cache": "requests",
    "/jax/compilation_cache/cache_hits": "hits",
}


class Clock:
    """Splits the time of the thread that made it; the innermost part owns each moment.

    It starts in the part "startup", when the process did. Compiling, wherever it happens,
    is the part "compile". Any thread may read it.

    started: when the process did, as Unix time. cache: programs that the compilation cache
    was asked for ("requests") and had ("hits").
    """

    def __init__(self):
        age = _process_age()
        self.started = time.time() - age
        self.cache = {"requests": 0, "hits": 0}
        self._origin = self._mark = time.perf_counter() - age
        self._seconds: dict[str, float] = {}
        self._parts = ["startup"]
        self._owner, self._lock = threading.get_ident(), threading.Lock()
        jax.monitoring.register_scalar_listener(self._on_begin)
        jax.monitoring.register_event_duration_secs_listener(self._on_end)
        jax.monitoring.register_event_listener(self._on_event)

    def elapsed(self) -> float:
        """Seconds since the process started: the sum of `seconds()`."""
        return time.perf_counter() - self._origin

    def seconds(self) -> dict[str, float]:
        """Of each part so far, the running one included."""
        with self._lock:
            self._charge()
            return dict(self._seconds)

    def current(self) -> str:
        """The part that owns this moment."""
        with self._lock:
            return self._parts[-1]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._push(name)
        try:
            yield
        finally:
            self._pop()

    def rest(self, name: str) -> None:
        """From now on time outside of any part belongs to `name`."""
        with self._lock:
            self._charge()
            self._parts[0] = name

    def close(self) -> None:
        """Stops listening to JAX."""
        jax.monitoring.unregister_scalar_listener(self._on_begin)
        jax.monitoring.unregister_event_duration_listener(self._on_end)
        jax.monitoring.unregister_event_listener(self._on_event)

    def _charge(self) -> None:
        now, part = time.perf_counter(), self._parts[-1]
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._mark
        self._mark = now

    def _push(self, name: str) -> None:
        with self._lock:
            self._charge()
            self._parts.append(name)

    def _pop(self) -> None:
        with self._lock:
            self._charge()
            self._parts.pop()

    # Other threads compile too, while this one does something else: that is not counted.

    def _on_begin(self, event: str, value: float, **_: object) -> None:
        if event in _COMPILING and threading.get_ident() == self._owner:
            self._push("compile")

    def _on_end(self, event: str, seconds: float, **_: object) -> None:
        if event in _COMPILING and threading.get_ident() == self._owner:
            self._pop()

    def _on_event(self, event: str, **_: object) -> None:
        if event in _CACHE_EVENTS and threading.get_ident() == self._owner:
            self.cache[_CACHE_EVENTS[event]] += 1


def _process_age() -> float:
    """Seconds since this process started; off Linux at least what it has computed."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5)
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, AttributeError):
        return time.process_time()
