"""As miniimagenet_b2.py, with DiT-L/2: width 1024, 24 layers.

    python -m fsdit.main --config=experiments/miniimagenet_l2.py --workdir=runs/miniimagenet_l2

648 M trainable parameters: the state (parameters, EMA, AdamW's two moments) is 10.4 GB, so it
is sharded over all chips. Over several slices give --config.mesh.fsdp the chips of one and
--config.mesh.data=-1. If memory falls short: --config.model.remat=full.

Hardware: meant for a TPU slice of eight chips or more; not run on one.
Expected result: none measured yet.
"""

from fsdit.config import Config, derive, dit_size


def get_config() -> Config:
    return derive(
        __file__,
        "miniimagenet_b2.py",
        name="miniimagenet_l2",
        model=dit_size("L"),
        mesh={"data": 1, "fsdp": -1},
    )
