"""Plans a run on a TPU slice without a TPU: does it fit, and how fast can it go?

    python -m fsdit.plan --config=experiments/miniimagenet_b2.py --topology=v5e:2x4
    python -m fsdit.plan --config=experiments/miniimagenet_b2.py --topology=v5e:2x4,v5e:4x8 \\
      --mesh=-1x1,1x-1 --steps=train,encode,sample --json=plan.json
    python -m fsdit.plan --config=experiments/miniimagenet_b2.py --topology=v5e:2x4 --predict

Compiles the programs of the configuration with the shardings of a real run. Prints, for each
chip, memory, FLOPs, bytes, collectives and the least times at the published peaks. Needs libtpu
(pip install 'fsdit[tpu]'), but no TPU, no network and no dataset. --topology=local plans for
the devices of this machine. --predict also predicts times on v5e and v6e, from the schedules
that the compiler writes.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from fsdit import program, storage
from fsdit.checks import validate
from fsdit.config import Config, MeshConfig
from fsdit.data.layout import DatasetInfo, read_dataset_info, write_json
from fsdit.errors import ConfigError
from fsdit.features.staging import with_local_copies

_CONFIG = program.define_config()
_TOPOLOGIES = flags.DEFINE_list("topology", ["v5e:2x4"], "TPU slices, or local.")
_MESHES = flags.DEFINE_list("mesh", [], "DATAxFSDP, -1 for what is left; config.mesh if empty.")
_STEPS = flags.DEFINE_list("steps", ["train"], "Of train, encode, sample.")
_PREDICT = flags.DEFINE_bool("predict", False, "Predict times, by part of the model.")
_JSON = program.define_path("json", None, "File to write the plans to.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Where there is no dataset.", lower_bound=1)
_CHANNELS = flags.DEFINE_enum("channels", "3", ["1", "3"], "Where there is no dataset.")


def _meshes(config: Config) -> list[MeshConfig]:
    """The meshes of --mesh, or that of the configuration. Raises ConfigError."""
    made = []
    for text in _MESHES.value:
        try:
            data, fsdp = map(int, text.split("x"))
        except ValueError:
            raise ConfigError(f"--mesh={text} is not DATAxFSDP, such as 4x2 or 1x-1") from None
        made.append(MeshConfig(data, fsdp))
        validate(dataclasses.replace(config, mesh=made[-1]))
    return made or [config.mesh]


def _dataset(config: Config) -> DatasetInfo:
    """The description of the dataset, or an assumed one where there is no dataset."""
    if storage.is_there(f"{config.data.dataset_dir}/dataset.json"):
        return read_dataset_info(with_local_copies(config, splits=()).data.dataset_dir)
    size, channels = _IMAGE_SIZE.value, int(_CHANNELS.value)
    print(
        f"no dataset at {config.data.dataset_dir}: planned for images of {size} x {size} x "
        f"{channels} (--image_size, --channels)"
    )
    return DatasetInfo(size, channels, splits={}, command="", seed=0)


def main(argv: Sequence[str]) -> None:
    del argv
    from fsdit.planning import plan, predictor, programs, report, target

    config = _CONFIG()
    if unknown := set(_STEPS.value) - set(programs.STEPS):
        raise ConfigError(f"--steps={min(unknown)} is none of {', '.join(programs.STEPS)}")
    meshes = _meshes(config)
    info = _dataset(config)
    plans = []
    with predictor.requested(_PREDICT.value) as predicting:
        for job in plan.jobs(config, meshes, target.open_targets(_TOPOLOGIES.value)):
            for step in _STEPS.value:
                for made in plan.measure(step, job, info, predicting):
                    plans.append(made)
                    took = f"compiled in {made.compile_seconds:.0f} s"
                    print(f"{made.program} on {made.topology}: {took}", flush=True)
    print(report.text(plans))
    if _JSON.value:
        with storage.output_file(_JSON.value) as output:
            write_json(output, report.document(plans, config))


if __name__ == "__main__":
    program.run(main)
