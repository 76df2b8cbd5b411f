"""The persistent compilation cache: what one start compiled, the next one loads.

JAX's process 0 writes, all processes read. JAX writes an entry in place and never over
another, so an entry that a kill or a full disk cut off would be warned of, and compiled
anew, at every start: the main process removes such entries before.
"""

import hashlib
import platform
from pathlib import Path

import jax
import zstandard

from fsdit.parallel import runtime

_ENTRIES = "*-cache"


def use_cache(setting: str, workdir: Path) -> None:
    """Call before anything is compiled, when the runtime is up.

    setting: a directory; "off"; or "", which is the one that JAX was told of by its own
    means (JAX_COMPILATION_CACHE_DIR), and otherwise WORKDIR/compilation_cache. A pod of
    CPU processes has none of ours.
    """
    if setting == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
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
    if runtime.is_main_process():
        _remove_cut_off(Path(directory))


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


def _remove_cut_off(directory: Path) -> None:
    for entry in directory.glob(_ENTRIES) if directory.is_dir() else ():
        if not _whole(entry.read_bytes()):
            print(f"warning: {entry} was cut off when it was written; removed", flush=True)
            entry.unlink(missing_ok=True)


def _whole(entry: bytes) -> bool:
    """Whether a Zstandard entry is; another JAX may have left others, which are not judged."""
    if not zstandard.FRAME_HEADER.startswith(entry[:4]):
        return True
    try:
        stream = zstandard.ZstdDecompressor().decompressobj()
        stream.decompress(entry)
        return stream.eof
    except zstandard.ZstdError:
        return False
