"""Compile one program over all devices of the pod, slow enough for JAX to cache it.

    python -m tests.parallel.compiles_once SETTING WORKDIR ADDRESS PROCESSES PROCESS

Prints as JSON what JAX did with its cache. The program is not run, so that no process waits for
another.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fsdit.parallel import compilation, processes


def slow_to_compile(x):
    for i in range(100):
        x = jnp.sin(x[::-1]) @ x + i
    return x


def main(setting: str, workdir: str, address: str, count: str, process: str) -> None:
    seen = []
    jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.split("/")[-1]))
    processes.start(address, int(count), int(process))
    compilation.use_cache(setting, Path(workdir))
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    sharding = jax.NamedSharding(mesh, PartitionSpec("data"))
    jax.jit(slow_to_compile, out_shardings=sharding).lower(jnp.ones((4, 4))).compile()
    names = {
        "hits": "cache_hits",
        "written": "cache_misses",
        "asked": "compile_requests_use_cache",
    }
    print(json.dumps({key: seen.count(name) for key, name in names.items()}), flush=True)
    processes.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
