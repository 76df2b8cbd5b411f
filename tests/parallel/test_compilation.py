"""The compilation cache of processes that start one after another."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from jax._src import compilation_cache as jax_cache
from jax._src.lru_cache import LRUCache

from fsdit.parallel import compilation
from tests.processes import finish
from tests.programs import environment, start_program

pytestmark = pytest.mark.medium


@pytest.fixture(autouse=True)
def without_shared_cache(monkeypatch):
    """Unset the cache that all tests share, so that each run uses its own."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def compile_in_pod(count: int, setting: str, workdir: Path) -> list[tuple[dict[str, int], str]]:
    """(what JAX did with the cache, all output) of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    module = "tests.parallel.compiles_once"
    arguments = (setting, workdir, address, count)
    # quick=False optimises the program, because JAX does not cache what compiles too fast.
    pod = [
        start_program(module, *arguments, index, env=environment(quick=False))
        for index in range(count)
    ]
    found = []
    for process in pod:
        status, output = finish(process)
        assert status == 0, output
        found.append((json.loads(re.search(r"^{.*}$", output, re.MULTILINE)[0]), output))
    return found


def compile_once(setting: str, workdir: Path) -> tuple[dict[str, int], str]:
    (found,) = compile_in_pod(1, setting, workdir)
    return found


def test_a_pod_of_cpu_processes_has_no_cache(tmp_path):
    # Process 0 alone would write to it, under keys that the other processes do not have.
    for found, _ in compile_in_pod(2, "", tmp_path):
        assert found["hits"] == found["written"] == 0
    assert list(tmp_path.iterdir()) == []


def entries(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("jit_slow_to_compile-*")}


def test_the_second_start_loads_what_the_first_compiled(tmp_path):
    found, _ = compile_once("", tmp_path)
    assert found["hits"] == 0 and found["written"] >= 1
    written = entries(tmp_path / "compilation_cache")
    assert len(written) == 1
    found, output = compile_once("", tmp_path)
    assert found["hits"] >= 1 and found["written"] == 0
    assert entries(tmp_path) == written
    assert "machine" not in output.lower()  # XLA warns of code for another machine

    # The cache is found after it was moved.
    tmp_path.joinpath("compilation_cache").rename(tmp_path / "moved")
    found, _ = compile_once(str(tmp_path / "moved"), tmp_path / "elsewhere")
    assert found["hits"] >= 1 and not (tmp_path / "elsewhere").exists()


def flipped(entry: bytes, place: int) -> bytes:
    return entry[:place] + bytes([entry[place] ^ 0x10]) + entry[place + 1 :]


DAMAGES = {
    "cut off": lambda entry: entry[: len(entry) // 2],
    "flipped bit": lambda entry: flipped(entry, len(entry) // 2),
    "no digest": lambda entry: entry[:-40],  # as JAX alone writes it
}


@pytest.mark.large
def test_a_damaged_entry_is_reported_and_made_again(tmp_path):
    compile_once("", tmp_path)
    ((path, whole),) = entries(tmp_path).items()
    for damage in DAMAGES.values():
        path.write_bytes(damage(whole))
        found, output = compile_once("", tmp_path)
        assert f"warning: {path} has no digest or another one" in output
        assert found["hits"] == 0 and found["written"] >= 1
    found, output = compile_once("", tmp_path)
    assert found["hits"] >= 1 and "warning" not in output
    # JAX alone reads an entry that has our digest.
    entry = next(iter(entries(tmp_path).values()))
    plain = jax_cache.decompress_executable(entry)
    assert plain == jax_cache.decompress_executable(entry[:-40])


def test_no_flipped_bit_or_lost_byte_gets_through(tmp_path, capsys):
    cache = compilation.CheckedCache(LRUCache(str(tmp_path), max_size=-1))
    value = bytes(np.random.default_rng(0).integers(0, 256, 60, np.uint8))
    cache.put("key", value)
    assert cache.get("key") == value and cache.get("other") is None
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    damaged = [flipped(whole, place) for place in range(len(whole))]
    damaged += [whole[:size] for size in range(len(whole))] + [whole + b"\0", value]
    for entry in damaged:
        file.write_bytes(entry)
        assert cache.get("key") is None and not file.exists()
        cache.put("key", value)
        assert cache.get("key") == value
    assert capsys.readouterr().out.count("warning: ") == len(damaged)
    file.rename(tmp_path / "other-cache")
    assert cache.get("other") is None


@pytest.mark.large
def test_entries_of_other_programs_are_kept(tmp_path):
    compile_once("", tmp_path)
    ((path, _),) = entries(tmp_path).items()
    other = path.with_name("other-cache")
    other.write_bytes(b"x" * 100)
    assert compile_once("", tmp_path)[0]["hits"] >= 1
    assert other.read_bytes() == b"x" * 100


@pytest.mark.large
def test_off_and_the_environment_keep_the_workdir_clean(tmp_path, monkeypatch):
    found, _ = compile_once("off", tmp_path / "run")
    assert found["asked"] == found["written"] == 0
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert compile_once("", tmp_path / "run")[0]["written"] > 1
    assert entries(tmp_path / "named") and not (tmp_path / "run").exists()


def test_code_for_one_processor_is_not_given_to_another(tmp_path, monkeypatch):
    names = set()
    for flags in ("fpu avx avx2", "fpu avx avx2 avx512f", "avx2 fpu avx"):
        listed = f"processor : 0\nvendor_id : any\nflags\t\t: {flags}\n"
        monkeypatch.setattr(Path, "read_text", lambda self, listed=listed: listed)
        names.add(compilation._processor())
    assert len(names) == 3 - 1  # the order of flags does not matter
