"""A small checkpoint in the hub's layout: two layers, a norm, and a text tower."""

import json

import numpy as np
from safetensors.numpy import save_file

L, IN, OUT = 2, 3, 4


def tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    """Two layers with queries and keys, and a text tower."""
    random = np.random.default_rng(0)
    named = {}
    for i in range(L):
        for part in ("q", "k"):
            named[f"layer.{i}.{part}.weight"] = random.normal(size=(OUT, IN))
            named[f"layer.{i}.{part}.bias"] = random.normal(size=(OUT,))
    named["norm.weight"], named["norm.bias"] = random.normal(size=(2, IN))
    named["text.weight"] = random.normal(size=(5, 5))
    return {name: value.astype(dtype) for name, value in named.items()}


def changed(**changes):
    named = tensors() | changes
    return {name: value for name, value in named.items() if value is not None}


def write(folder, named, stem="model", shards=1):
    (folder / "config.json").write_text(json.dumps({"model_type": "small", "width": 3}))
    if shards == 1:
        save_file(named, folder / f"{stem}.safetensors")
        return folder
    where = {}
    for i in range(shards):
        part = dict(list(named.items())[i::shards])
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
