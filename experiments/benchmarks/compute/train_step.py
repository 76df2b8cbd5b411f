"""Images/s of the train step on this machine, scanned and unrolled, and compared with PyTorch.

    python -m experiments.benchmarks.compute.train_step

This is the step that training compiles, with optimizer, EMA and guard against non-finite
values, in float32, at the size of SiT-S/2 on latents of 28 x 28 x 4. It is measured with the
tokens of five supports, and without them, where a plain PyTorch DiT of the same shape under
torch.compile is measured too. The sides of a comparison take turns in one process. PyTorch
belongs to the test extra; --nopytorch leaves its side out.

GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment (glibc 2.35, transparent huge pages
allowed) may help: the large temporary arrays of a step then lie in huge pages. The results say
whether it was set.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

from experiments.benchmarks.turns import machine, rates, take_turns
from fsdit import program
from fsdit.config import CodecConfig, Config, DataConfig, EncoderConfig, dit
from fsdit.data.layout import DatasetInfo, SplitInfo, read_dataset_info
from fsdit.features.frozen import Frozen
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.planning.programs import abstract_batch
from fsdit.planning.published import abstract_networks
from fsdit.training import optimizer
from fsdit.training import state as train_state
from fsdit.training.alignment import with_projection
from fsdit.training.step import compile_train_step

IMAGE_SIZE, BATCH, SHOTS = 224, 8, 5
FORMS = ("pooled", "tokens")
_PYTORCH_SIDE = "pooled, PyTorch"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured. steps: in a turn. threads: of PyTorch; JAX uses all cores.

    forms: of the condition: "pooled" has no tokens, "tokens" has them.
    """

    turns: int = 5
    steps: int = 4
    threads: int = 2
    pytorch: bool = True
    forms: tuple[str, ...] = FORMS


def config(*, tokens: bool, scan: bool) -> Config:
    """The configuration of one side. scan: whether blocks are a scan or unrolled."""
    model = dit(
        "S",
        patch_size=2,
        cross_attention="patches" if tokens else "none",
        encoder=EncoderConfig(
            name="frozen", location="google/siglip2-base-patch16-224", dtype="float32"
        ),
        codec=CodecConfig(name="autoencoder_kl", location="stabilityai/sd-vae-ft-ema"),
        dtype="float32",
        scan_layers=scan,
    )
    return Config(data=DataConfig(batch_size=BATCH, shots=SHOTS), model=model)


def networks_of(config: Config) -> ModelSpec:
    """The trainable model of a configuration."""
    return opened(config)[0]


def opened(config: Config) -> tuple[ModelSpec, Frozen]:
    """The trainable model, and the frozen networks with shapes for their parameters."""
    split = SplitInfo(("class",), (1,), 0, SHOTS)
    info = DatasetInfo(IMAGE_SIZE, 3, {"train": split}, command="", seed=0)
    return abstract_networks(config, info)


def example_batch(spec: ModelSpec, config: Config) -> dict[str, Any]:
    """Random features and moments of latents, in the shapes of real ones, on the host."""
    random, rows = np.random.default_rng(0), config.data.batch_size
    tokens = spec.features.grid[0] * spec.features.grid[1]

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal((rows, *shape), np.float32)

    shots = config.data.shots
    supports = {"pooled": normal(shots, spec.features.dim)}
    if config.model.use_context:
        supports["tokens"] = normal(shots, tokens, spec.features.dim)
    of_encoder = jnp.dtype(config.model.encoder.dtype)
    shape = spec.latent_shape
    return {
        "index": np.arange(rows, dtype=np.uint32),
        "class_id": np.zeros(rows, np.int32),
        "target": (normal(*shape), normal(*shape)),
        "supports": {name: array.astype(of_encoder) for name, array in supports.items()},
    }


def trainer(config: Config) -> Callable[[int], jax.Array]:
    """Returns a function that trains `steps` steps on one batch and returns the last loss."""
    spec, mesh = networks_of(config), sharding.make_mesh(config)
    place = sharding.global_batch(mesh, config.data.batch_size)
    return _trainer(config, spec, mesh, place(example_batch(spec, config)))


def trainer_on_zeros(config: Config) -> Callable[[int], jax.Array]:
    """Returns a function that trains an experiment some steps on a batch of zeros.

    It returns the last loss. The experiment's dataset has to exist.
    """
    info = read_dataset_info(config.data.dataset_dir)
    spec, frozen = abstract_networks(config, info)
    spec, mesh = with_projection(spec, config), sharding.make_mesh(config)
    shapes = abstract_batch(spec, frozen, config, info)
    batch = jax.device_put(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
        sharding.batch_sharding(mesh),
    )
    return _trainer(config, spec, mesh, batch)


def _trainer(config: Config, spec: ModelSpec, mesh: Mesh, batch: Any) -> Callable[[int], jax.Array]:
    step, state = step_and_state(config, spec, mesh)

    def train(steps: int) -> jax.Array:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        return metrics["loss"]

    return train


def step_and_state(
    config: Config, spec: ModelSpec, mesh: Mesh
) -> tuple[Callable[..., Any], train_state.TrainState]:
    """The jitted train step, and a state to start from."""
    tx = optimizer.transformation(config.optimizer)
    template = train_state.abstract(spec, tx, mesh, len(config.train.all_decays))
    step = compile_train_step(spec, config, tx, mesh, template)
    return step, train_state.init(spec, tx, config.seed, template)


def pytorch_trainer(
    config: Config, threads: int, device: str = "cpu", *, compiled: bool = True
) -> Callable[[int], Any]:
    """A `trainer` of the PyTorch model on PyTorch's `device`.

    compiled: by torch.compile. Parameters, optimizer and average are float32, as ours. In
    bfloat16 the model computes under autocast; in float32 it may multiply in TF32, as JAX does
    on NVIDIA GPUs that have it.
    """
    import torch  # belongs to the test extra

    from experiments.benchmarks.compute import pytorch_dit

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if device != "cpu":
        torch.set_float32_matmul_precision("high")
    spec = networks_of(config)
    batch = example_batch(spec, config)
    latents = torch.from_numpy(batch["target"][0]).permute(0, 3, 1, 2).contiguous()
    low = config.model.dtype == "bfloat16"
    supports = [_to_torch(array, low) for _, array in sorted(batch["supports"].items())]
    model = pytorch_model(spec).to(device)
    step = pytorch_dit.make_train_step(model, compiled=compiled, bfloat16=low)
    arrays = [latents.to(device), *(features.to(device) for features in supports)]

    def train(steps: int) -> torch.Tensor:
        for _ in range(steps):
            loss = step(*arrays)
        return loss.cpu()  # waits for the device

    return train


def _to_torch(array: np.ndarray, bfloat16: bool) -> Any:
    import torch

    tensor = torch.from_numpy(array.astype(np.float32))
    return tensor.bfloat16() if bfloat16 and array.dtype == jnp.bfloat16 else tensor


def pytorch_model(spec: ModelSpec) -> Any:
    """The PyTorch model of the size and the condition of `spec`."""
    from experiments.benchmarks.compute.pytorch_dit import DiT

    model, tokens = spec.config, None
    size = (model.hidden_size, model.depth, model.num_heads, model.patch_size)
    if model.use_context:
        tokens = (spec.features.grid[0] * spec.features.grid[1], model.num_latents)
    return DiT(*size, spec.latent_shape, spec.features.dim, tokens)


def measure(settings: Settings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Images/s of each side, and the ratio to PyTorch. say: prints each side when it is done."""
    found: dict[str, dict[str, Any]] = {}
    for form in settings.forms:
        compared = compare(form, settings)
        for name, side in compared.items():
            turns = ", ".join(f"{v:.2f}" for v in side["turns"])
            say(f"{name}: {side['best']:.2f}, {side['median']:.2f} (of {turns})")
        found |= compared
    return {"images_per_second": found, "ratio": ratios(found), "machine": machine()}


def compare(form: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """Images/s of the sides of one form, which take turns. Frees their memory at the end."""
    tokens = form == "tokens"
    sides = {
        f"{form}, {name}": trainer(config(tokens=tokens, scan=scan))
        for name, scan in (("scanned", True), ("unrolled", False))
    }
    if settings.pytorch and not tokens:
        plain = config(tokens=False, scan=True)
        sides[_PYTORCH_SIDE] = pytorch_trainer(plain, settings.threads)

    def turn(side: Callable[[int], Any]) -> Callable[[], Any]:
        return lambda: side(settings.steps)

    seconds, _ = take_turns({name: turn(side) for name, side in sides.items()}, settings.turns)
    images = settings.steps * BATCH
    return {name: rates(values, images) for name, values in seconds.items()}


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """JAX / PyTorch of the best turns and of the medians; JAX by its faster form."""
    other = found.get(_PYTORCH_SIDE)
    if other is None:
        return {}
    ours = [found[f"pooled, {form}"] for form in ("scanned", "unrolled")]
    return {kind: max(o[kind] for o in ours) / other[kind] for kind in ("best", "median")}


def main(argv: list[str]) -> None:
    del argv
    settings = Settings(
        _TURNS.value, _STEPS.value, _THREADS.value, _PYTORCH.value, tuple(_FORMS.value)
    )
    print(f"train step, float32, batch {BATCH}, images/s, best and median of {settings.turns}:")
    result = measure(settings)
    for kind, value in result["ratio"].items():
        print(f"JAX / PyTorch, {kind}: {value:.2f}")
    print(json.dumps(result["machine"]))


if __name__ == "__main__":
    _TURNS = flags.DEFINE_integer("turns", Settings.turns, "Turns of each side.", lower_bound=1)
    _STEPS = flags.DEFINE_integer("steps", Settings.steps, "Steps of a turn.", lower_bound=1)
    _THREADS = flags.DEFINE_integer("threads", Settings.threads, "Threads of PyTorch.")
    _PYTORCH = flags.DEFINE_boolean("pytorch", True, "Compare with PyTorch.")
    _FORMS = flags.DEFINE_multi_enum("form", FORMS, FORMS, "Condition; may be repeated.")
    program.run(main)
