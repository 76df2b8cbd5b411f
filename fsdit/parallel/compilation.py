"""The persistent compilation cache, with checked entries.

JAX's process 0 writes the cache, and all processes read it. JAX does not check entries: a
flipped bit crashes the process or makes it compute other numbers, and an entry that a kill
cut off stays for ever. Here each entry ends with a digest, and a program whose entry does not
match its digest is compiled again.
"""

import hashlib
import platform
from pathlib import Path

import jax
from jax._src import compilation_cache  # jax 0.10 has no public interface to the cache
from jax._src.compilation_cache_interface import CacheInterface

from fsdit import storage
from fsdit.parallel import processes


def use_cache(setting: str, workdir: Path) -> None:
    """Sets JAX's cache up; to be called after `processes.start`, before anything is compiled.

    setting: a directory; "off"; or "" for the directory of JAX_COMPILATION_CACHE_DIR, and
    WORKDIR/compilation_cache where that is not set. A pod of CPU processes uses a cache only
    where setting is "" and JAX_COMPILATION_CACHE_DIR is set.
    """
    if setting == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    compilation_cache.get_file_cache = _checked_file_cache
    if not setting and jax.config.jax_compilation_cache_dir:
        return
    backend = jax.default_backend()
    if backend == "cpu" and jax.process_count() > 1:
        # On the CPU, JAX's key names the process, so that only process 0, which writes, ever
        # finds an entry. It then waits for the others, which compile, in a collective that
        # gives up after 30 seconds.
        return
    directory = setting or str((workdir / "compilation_cache").absolute())
    if backend == "cpu":
        # JAX's key does not tell processors apart, and code that was compiled for the
        # instructions of another one may not run here.
        directory = f"{directory.rstrip('/')}/cpu-{_processor()}"
    if backend != "gpu":
        # XLA's own caches serve GPUs only. Elsewhere they merely put the directory's name into
        # the keys, so that a workdir that was moved would find nothing.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    jax.config.update("jax_compilation_cache_dir", directory)


# Most programs of a start hold a single operation, and compile within milliseconds: reading so
# many small files would hardly be faster.
_MIN_COMPILE_SECONDS = 0.2


def _processor() -> str:
    """A short digest of the instructions that this machine's processor can run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    # The line is called "flags" on x86 and "Features" on Arm; it is the same for every core.
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    features = " ".join(sorted(listed.split()))
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


_get_file_cache = compilation_cache.get_file_cache
# The header of a frame that Zstandard's readers skip, so that plain JAX can read entries too.
_FRAME = b"\x50\x2a\x4d\x18" + (32).to_bytes(4, "little")


def _checked_file_cache(path: str) -> tuple[CacheInterface, str] | None:
    found = _get_file_cache(path)
    return found and (CheckedCache(found[0]), found[1])


class CheckedCache(CacheInterface):
    """One of JAX's caches, whose entries end with a digest of their content and key."""

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
        if processes.is_main_process():  # JAX does not overwrite entries: this one has to go
            file = storage.place(self._path) / f"{key}-cache"
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
