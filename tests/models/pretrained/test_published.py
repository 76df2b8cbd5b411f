"""The layouts of the published checkpoints, at their true sizes, without their values."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from flax import nnx, traverse_util

from fsdit.models.pretrained import dinov2, siglip
from fsdit.models.pretrained.stored.checkpoint import Checkpoint

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
SIGLIP = {
    "B/16-224": {},
    "B/16-512": {"image_size": 512},
    "L/16-384": LARGE | {"image_size": 384},
    "So400m/14-224": SO400M | {"image_size": 224, "patch_size": 14},
    "So400m/14-384": SO400M | {"image_size": 384, "patch_size": 14},
    "So400m/16-256": SO400M | {"image_size": 256},
}
WIDE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
GIANT = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24}
DINOV2 = {
    "S/14": {"hidden_size": 384, "num_attention_heads": 6},
    "B/14": {},
    "L/14": WIDE,
    "g/14": GIANT | {"use_swiglu_ffn": True},
}


def pairs(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def siglip_names(depth: int) -> set[str]:
    root = "vision_model."
    names = pairs(f"{root}embeddings.patch_embedding", f"{root}post_layernorm")
    names |= {f"{root}embeddings.position_embedding.weight", f"{root}head.probe"}
    names |= {f"{root}head.attention.in_proj_{kind}" for kind in ("weight", "bias")}
    head = ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")
    names |= pairs(*(f"{root}head.{name}" for name in head))
    parts = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    parts += [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    for i in range(depth):
        names |= pairs(*(f"{root}encoder.layers.{i}.{part}" for part in parts))
    return names


def dinov2_names(depth: int, swiglu: bool, registers: bool) -> set[str]:
    names = pairs("embeddings.patch_embeddings.projection", "layernorm")
    names |= {"embeddings.cls_token", "embeddings.position_embeddings"}
    names |= {"embeddings.register_tokens"} if registers else set()
    parts = ["norm1", "norm2", "attention.output.dense"]
    parts += [f"attention.attention.{name}" for name in ("query", "key", "value")]
    parts += ["mlp.weights_in", "mlp.weights_out"] if swiglu else ["mlp.fc1", "mlp.fc2"]
    for i in range(depth):
        names |= pairs(*(f"encoder.layer.{i}.{part}" for part in parts))
        names |= {f"encoder.layer.{i}.layer_scale{n}.lambda1" for n in (1, 2)}
    return names


def checkpoint(config: dict, names: set[str]) -> Checkpoint:
    return Checkpoint(Path("published"), config, dict.fromkeys(names, Path("model.safetensors")))


def sizes(tower, config) -> dict[str, int]:
    """Map the path of each parameter to its number of values."""
    abstract = nnx.eval_shape(
        lambda: tower(config, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0))
    )
    leaves = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(abstract)), sep="/")
    return {path: math.prod(leaf.shape) for path, leaf in leaves.items()}


def check(module, tower, given: Checkpoint, image_size: int, expected: int) -> None:
    """Assert that the mapping uses each tensor and fills each parameter, of the expected size."""
    config = module.read_config(given, (image_size, image_size))
    mapping = module.mapping(given, config)
    used = {name for source in mapping.values() for _, _, name in source.tensors()}
    assert used == {name for name in given.files if not name.startswith(module.IGNORED)}
    found = sizes(tower, config)
    assert found.keys() == mapping.keys()
    assert sum(found.values()) == expected


@pytest.mark.parametrize("name", SIGLIP)
def test_siglip(name):
    fields = SIGLIP[name]
    with torch.device("meta"):
        original = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**fields))
    text = {"logit_scale", "logit_bias", "text_model.head.weight"}
    names = siglip_names(fields.get("num_hidden_layers", 12)) | text
    # Published files leave out what equals transformers' defaults.
    given = checkpoint({"model_type": "siglip", "vision_config": fields}, names)
    expected = sum(value.numel() for value in original.parameters())
    check(siglip, siglip.SiglipTower, given, fields.get("image_size", 224), expected)


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("name", DINOV2)
def test_dinov2(name, registers):
    fields = DINOV2[name] | {"image_size": 518, "patch_size": 14}
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    with torch.device("meta"):
        config = getattr(transformers, f"{kind}Config")(**fields)
        original = getattr(transformers, f"{kind}Model")(config)
    depth, swiglu = fields.get("num_hidden_layers", 12), fields.get("use_swiglu_ffn", False)
    names = dinov2_names(depth, swiglu, registers) | {"embeddings.mask_token"}
    given = checkpoint(fields | {"model_type": config.model_type}, names)
    values = dict(original.named_parameters())
    expected = sum(v.numel() for n, v in values.items() if n != "embeddings.mask_token")
    check(dinov2, dinov2.Dinov2Tower, given, 224, expected)


def test_defaults_are_transformers():
    """config.json leaves out what equals transformers' defaults."""
    pairs = [
        (siglip, {"model_type": "siglip_vision_model"}, transformers.SiglipVisionConfig()),
        (dinov2, {"model_type": "dinov2"}, transformers.Dinov2Config()),
        (dinov2, {"model_type": "dinov2_with_registers"}, transformers.Dinov2WithRegistersConfig()),
    ]
    for module, config, original in pairs:
        ours = module.read_config(checkpoint(config, set()), (224, 224))
        theirs = original.to_dict()
        assert {k: v for k, v in vars(ours).items() if theirs.get(k, 0) != v} == {}


def test_no_device_is_needed_for_shapes():
    config = siglip.SiglipConfig(**SO400M)
    before = len(jax.live_arrays())
    assert sum(sizes(siglip.SiglipTower, config).values()) > 400e6
    assert len(jax.live_arrays()) == before
