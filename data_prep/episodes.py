"""Rebuilds the episode files of a dataset; its images are not touched.

    python -m data_prep.episodes --dataset_dir=datasets/mini --shots=5 --sets_per_class=100

Each class gets `sets_per_class` sets of K + 1 images, and each image of a set is the target
once: 60 classes of 100 sets are 36,000 episodes for K = 5. With K = 0 a set is one episode,
whose target is its own support.

New files are written beside the old ones and then exchanged by renaming. Meanwhile
`dataset.json` has another name, so a kill leaves the old dataset, the new one, or one that
every program refuses until this one runs again. First stop training runs on the dataset.
"""

from absl import flags

from data_prep.conversion.notes import repeated_sets
from data_prep.rebuild import rebuild
from fsdit import program, storage
from fsdit.program.ownership import owned

_DATASET_DIR = program.define_path("dataset_dir", None, "The dataset to change.", required=True)
_SHOTS = flags.DEFINE_integer(
    "shots",
    None,
    "Supports of each episode, K; 0: the target itself.",
    lower_bound=0,
    required=True,
)
_SETS = flags.DEFINE_integer(
    "sets_per_class", None, "Sets of K + 1 images of each class.", 1, 10**6, required=True
)
_SEED = flags.DEFINE_integer("seed", 0, "Decides the sets.", 0, 2**63 - 1)


def main(argv: list[str]) -> None:
    del argv
    location = _DATASET_DIR.value
    with owned(location), storage.changed_folder(location) as directory:
        info = rebuild(directory, _SHOTS.value, _SETS.value, _SEED.value)
    for note in repeated_sets(info.splits.values(), _SHOTS.value, _SETS.value):
        print(note)
    for name, split in info.splits.items():
        print(
            f"{name}: {split.episodes} episodes of {len(split.classes)} classes, K = {split.shots}"
        )
    print(f"dataset: {location}")


if __name__ == "__main__":
    program.run(main)
