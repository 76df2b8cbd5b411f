"""As miniimagenet_b2.py, with DiT-XL/2: width 1152, 28 layers.

    python -m fsdit.main --config=experiments/miniimagenet_xl2.py --workdir=runs/miniimagenet_xl2

953 M trainable parameters: the state (parameters, EMA, AdamW's two moments) is 15.2 GB, so it
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
        name="miniimagenet_xl2",
        model=dit_size("XL"),
        mesh={"data": 1, "fsdp": -1},
    )
