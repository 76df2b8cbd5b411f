"""A clock that splits the time since the process started into named parts."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

# Events that JAX reports at the beginning of a compilation (as a scalar) and at its end.
_COMPILING = frozenset(
    f"/jax/core/compile/{name}_duration"
    for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
_CACHE_EVENTS = {
    "/jax/compilation_cache/compile_requests_use_cache": "requests",
    "/jax/compilation_cache/cache_hits": "hits",
}


class Clock:
    """Splits the time of the thread that made it; each moment belongs to the innermost part.

    Time begins with the process, in the part "startup". Whatever part runs, compiling is the
    part "compile". Any thread may read the clock.

    started: Unix time at which the process started. cache: how many programs were looked up in
    the compilation cache ("requests") and how many were found ("hits").
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
        """Seconds of each part so far, including the part that runs now."""
        with self._lock:
            self._charge()
            return dict(self._seconds)

    def current(self) -> str:
        """Name of the part that runs now."""
        with self._lock:
            return self._parts[-1]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Assigns the time of the block to the part `name`."""
        self._push(name)
        try:
            yield
        finally:
            self._pop()

    def rest(self, name: str) -> None:
        """Assigns the time outside of all blocks to the part `name` from now on."""
        with self._lock:
            self._charge()
            self._parts[0] = name

    def close(self) -> None:
        """Stops listening to JAX."""
        jax.monitoring.unregister_scalar_listener(self._on_begin)
        jax.monitoring.unregister_event_duration_listener(self._on_end)
        jax.monitoring.unregister_event_listener(self._on_event)

    def _charge(self) -> None:
        """Adds the time since the last call to the innermost part. Needs the lock."""
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

    # Compilations in other threads are not counted: this thread does something else meanwhile.

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
    """Seconds since this process started; where there is no /proc, its CPU seconds instead."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5)
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, AttributeError):
        return time.process_time()
