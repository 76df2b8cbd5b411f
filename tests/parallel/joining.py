"""Join the processes of the job, and print how many there are and which devices they see."""

from absl import flags

from fsdit import program
from fsdit.parallel import processes

_ADDRESS = flags.DEFINE_string("coordinator_address", None, "")
_COUNT = flags.DEFINE_integer("num_processes", None, "")
_MINE = flags.DEFINE_integer("process_id", None, "")


def main(argv):
    del argv
    import jax
    from jax._src import xla_bridge

    processes.start(_ADDRESS.value, _COUNT.value, _MINE.value)
    agreed = processes.agree(True)
    print(
        f"{jax.process_count()} processes, agreed {agreed}, "
        f"distributed {jax.distributed.is_initialized()}, "
        f"devices {xla_bridge.CUDA_VISIBLE_DEVICES.value}",
        flush=True,
    )
    processes.stop()


if __name__ == "__main__":
    program.run(main)
