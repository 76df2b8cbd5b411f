"""The persistent compilation cache: what one start compiled, the next one loads.

JAX's process 0 writes, all processes read. JAX itself trusts what it finds: a flipped bit
crashes the process or computes other numbers, an entry that a kill cut off stays for ever.
So each entry ends with a digest, and what does not match its own is compiled anew.
"""

import hashlib
import platform
from pathlib import Path

import jax
from jax._src import compilation_cache  # of jax 0.10: there is no public way into the cache
from jax._src.compilation_cache_interface import CacheInterface

from fsdit.parallel import processes


def use_cache(setting: str, workdir: Path) -> None:
    """Call before anything is compiled, when the runtime is up.

    setting: a directory; "off"; or "", which is the one that JAX was told of by its own
    means (JAX_COMPILATION_CACHE_DIR), and otherwise WORKDIR/compilation_cache. A pod of
    CPU processes has none of ours.
    """
    if setting == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    compilation_cache.get_file_cache = _checked_file_cache
    if not setting and jax.config.jax_compilation_cache_dir:
        return
    backend = jax.default_backend()
    if backend == "cpu" and jax.process_count() > 1:
        # Here JAX's key names the process, so that only the one that writes ever finds
        # something, and waits for the others in a collective that gives up after 30 seconds.
        return
    directory = setting or str((workdir / "compilation_cache").absolute())
    if backend == "cpu":
        # Machine code for another processor's instructions may not run on this one, and
        # JAX's key does not tell processors apart.
        directory = f"{directory.rstrip('/')}/cpu-{_processor()}"
    if backend != "gpu":
        # XLA's caches are for GPUs; elsewhere they only put this directory's name into the
        # keys, so that a moved workdir would find nothing.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    jax.config.update("jax_compilation_cache_dir", directory)


# Most programs of a start are those of single operations, in milliseconds each: as files
# they would be many, and hardly faster to read than to compile.
_MIN_COMPILE_SECONDS = 0.2


def _processor() -> str:
    """A short name of what this machine's processor can run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = [platform.processor()]
    # "flags" on x86, "Features" on Arm; the same for every core.
    told = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    features = " ".join(sorted(told.split()))
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


_get_file_cache = compilation_cache.get_file_cache
# A frame that Zstandard's readers skip: another JAX reads entries with it as without.
_FRAME = b"\x50\x2a\x4d\x18" + (32).to_bytes(4, "little")


def _checked_file_cache(path: str) -> tuple[CacheInterface, str] | None:
    found = _get_file_cache(path)
    return found and (CheckedCache(found[0]), found[1])


class CheckedCache(CacheInterface):
    """A cache of JAX whose entries end with a digest of themselves and their key."""

    def __init__(self, cache: CacheInterface):
        self._cache, self._path = cache, cache._path

    def get(self, key: str) -> bytes | None:
        """The entry, or None where there is none that matches its digest."""
        entry = self._cache.get(key)
        if entry is None:
            return None
        value = entry[: -len(_digest(key, b""))]
        if value + _digest(key, value) == entry:
            return value
        if processes.is_main_process():  # the one that writes it anew: JAX never writes over one
            file = Path(self._path) / f"{key}-cache"
            print(
                f"warning: {file} has no digest or another one: cut off, changed, or of another "
                "program; compiled anew",
                flush=True,
            )
            file.unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        self._cache.put(key, value + _digest(key, value))


def _digest(key: str, value: bytes) -> bytes:
    return _FRAME + hashlib.sha256(key.encode() + b"\0" + value).digest()
