"""Diagnostics of the EMA weights, computed every `eval_interval` steps.

These are losses on fixed episodes, statistics of conditions, layers and attention, and grids of
samples. Noise and times are the same in every evaluation, so that one can be compared with the
next. They have compiled programs of their own, and cost nothing on the steps between.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fsdit.config import Config
from fsdit.data import pipeline
from fsdit.data.pictures import save_picture
from fsdit.data.records import num_supports
from fsdit.events import writing
from fsdit.features.batches import Feed
from fsdit.models.spec import ModelSpec
from fsdit.parallel import processes, sharding
from fsdit.sampling.images import compile_sampling
from fsdit.training.objective import StepBatch, example_losses, noised
from fsdit.training.step import time_bins
from fsdit.training.telemetry.logs import names, pictures
from fsdit.training.telemetry.running import bin_means
from fsdit.training.telemetry.telemetry import Telemetry

SEEN, UNSEEN = "train", "val"  # splits; a dataset may lack the second
_HEADINGS = {SEEN: "classes of training", UNSEEN: "classes never seen in training"}


def condition_statistics(
    pooled: Float[Array, "B K D"], class_id: Int[Array, "B"]
) -> dict[str, Float[Array, ""]]:
    """Statistics of the pooled support embeddings, which show whether they separate classes.

    mean and norm: averages over all embeddings. cosine_within: mean cosine between two supports
    of an episode. cosine_between: mean cosine between the mean embeddings of two episodes of
    different classes. spread: root mean square distance of supports to the mean of their
    episode. With unit vectors u_1 to u_K, the mean cosine of two different ones is

        (|u_1 + ... + u_K|^2 - K) / (K (K - 1)).
    """
    pooled = pooled.astype(jnp.float32)
    k = pooled.shape[1]
    mean = pooled.mean(1)
    unit = pooled / (jnp.linalg.norm(pooled, axis=-1, keepdims=True) + 1e-12)
    unit_mean = mean / (jnp.linalg.norm(mean, axis=-1, keepdims=True) + 1e-12)
    within = (jnp.square(unit.sum(1)).sum(-1) - k) / max(k * (k - 1), 1)
    cosines = unit_mean @ unit_mean.T
    different = class_id[:, None] != class_id[None]
    return {
        "condition/mean": pooled.mean(),
        "condition/norm": jnp.linalg.norm(pooled, axis=-1).mean(),
        "condition/spread": jnp.sqrt(jnp.square(pooled - mean[:, None]).sum(-1).mean()),
        "condition/cosine_within": within.mean(),
        "condition/cosine_between": jnp.where(different, cosines, 0).sum()
        / jnp.maximum(different.sum(), 1),
    }


def layer_scalars(stats: dict[str, np.ndarray]) -> dict[str, float]:
    """Gives each statistic (), of each layer (L,) or of each layer and head (L, heads) a tag."""
    row = {}
    for name, values in stats.items():
        if values.ndim == 0:
            row[f"conditioning/{name}"] = float(values)
        elif values.ndim == 1:
            row |= {f"layers/{name}/layer{i:02d}": float(v) for i, v in enumerate(values)}
        else:
            row |= {
                f"attention/{name}/layer{i:02d}_head{h:02d}": float(v)
                for i, heads in enumerate(values)
                for h, v in enumerate(heads)
            }
    return row


class Diagnostics:
    """Computes the diagnostics of a run."""

    def __init__(
        self,
        spec: ModelSpec,
        config: Config,
        mesh: Mesh,
        feed: Feed,
        workdir: Path,
        examples: Mapping[str, pipeline.FixedExamples],
    ):
        """examples: the fixed episodes of SEEN, and of UNSEEN where the dataset has that split."""
        self._config, self._mesh, self._feed, self._workdir = config, mesh, feed, workdir
        # What each kind of attention attends to, by the name of its statistic.
        self._attended = {
            "self_attention_entropy": spec.num_tokens,
            "cross_attention_entropy": spec.context_tokens(num_supports(config.data.shots)),
        }
        self._examples = examples
        self._validation = UNSEEN if UNSEEN in examples else SEEN
        out = sharding.replicated(mesh)
        self._losses = jax.jit(_make_losses(spec, config, mesh), out_shardings=out)
        self._statistics = jax.jit(_make_statistics(spec, config, mesh), out_shardings=out)
        plain = dataclasses.replace(config.sampling, guidance_scale=1.0)
        self._samplers = [
            compile_sampling(spec, sampling, mesh) for sampling in (plain, config.sampling)
        ]

    def run(self, ema: dict, step: int, telemetry: Telemetry) -> dict[str, float]:
        """Returns the scalars of a step; pictures and histograms go to telemetry on the way."""
        with jax.transfer_guard("allow"):  # diagnostics copy to the host
            return self._run(ema, step, telemetry)

    def _run(self, ema: dict, step: int, telemetry: Telemetry) -> dict[str, float]:
        row = self._evaluate(ema)
        batch = next(self._batches(self._validation, 1))
        stats, pooled = self._statistics(ema, batch)
        stats = jax.device_get(stats)
        row |= {k: float(stats.pop(k)) for k in list(stats) if k.startswith("condition/")}
        row |= layer_scalars(stats)
        telemetry.histograms(step, {"condition/pooled": np.asarray(pooled)})
        self._attention(stats, step, telemetry)
        self._grids(ema, step, telemetry)
        return row

    def _attention(self, stats: Mapping[str, np.ndarray], step: int, telemetry: Telemetry) -> None:
        """Makes a picture and histograms of the entropies (L, heads) of attention."""
        found = {name: (stats[name], tokens) for name, tokens in self._attended.items() if tokens}
        if processes.is_main_process():
            telemetry.images(step, {names.ENTROPY: pictures.entropy_map(found)[None]})
        telemetry.histograms(step, {f"attention/{name}": each for name, (each, _) in found.items()})

    def _batches(self, split: str, count: int) -> Iterator[StepBatch]:
        return self._feed.batches(self._examples[split][0], self._config.data.batch_size, count)

    def _evaluate(self, ema: dict) -> dict[str, float]:
        """Losses on validation and on equally many training episodes, and their difference."""
        size = self._config.data.batch_size
        _, num_validation = self._examples[self._validation]
        limit = self._config.train.eval_batches or math.ceil(num_validation / size)
        sums = {}
        for split, (_, available) in self._examples.items():
            episodes = min(available, limit * size)
            sums[split] = sum(
                np.stack(jax.device_get(self._losses(ema, batch, np.uint32(episodes))))
                for batch in self._batches(split, math.ceil(episodes / size))
            )
        loss = {split: float(values.sum() / n.sum()) for split, (values, n) in sums.items()}
        row = {"train_ema/loss": loss[SEEN]}
        if UNSEEN in loss:
            row |= {"val/loss": loss[UNSEEN], "val/gap": loss[UNSEEN] - loss[SEEN]}
            row |= bin_means("val", *sums[UNSEEN])
        return row

    def _grids(self, ema: dict, step: int, telemetry: Telemetry) -> None:
        """Makes a picture of each split and saves both in one, seen classes above unseen ones.

        A row is an episode: supports, target, sample without guidance, sample with guidance.
        """
        rows = self._config.train.grid_episodes
        size = sharding.round_up(rows, self._mesh.size)
        blocks, seed = {}, np.uint32(self._config.seed)
        for split, (read, _) in self._examples.items():
            batch = next(self._feed.batches(read, size, 1))
            samples = [
                sharding.to_host(
                    sample(ema, self._feed.codec, batch["supports"], batch["index"], seed)
                )
                for sample in self._samplers
            ]
            shown = [read.pictures(i) for i in range(rows)]
            scale = self._config.sampling.guidance_scale
            plain, guided = (each[:rows] for each in samples)
            blocks[split] = pictures.sample_picture(
                _HEADINGS[split],
                np.stack([supports for supports, _ in shown]),
                {
                    "target": np.stack([target for _, target in shown]),
                    "no guidance": plain,
                    f"guidance {scale:g}": guided,
                },
            )
        tags = {SEEN: names.SAMPLES_SEEN, UNSEEN: names.SAMPLES_UNSEEN}
        telemetry.images(step, {tags[split]: block[None] for split, block in blocks.items()})
        if processes.is_main_process():
            path = self._workdir / "samples" / f"{step}.png"
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                save_picture(path, np.concatenate(list(blocks.values())), zoom=1)


def _make_losses(spec: ModelSpec, config: Config, mesh: Mesh) -> Callable:
    def losses(ema: dict, batch: StepBatch, episodes: Array) -> tuple[Array, Array]:
        params = sharding.gathered(mesh, ema)
        values, t = example_losses(spec, config, params, batch, "evaluation")
        return time_bins(values, t, (batch["index"] < episodes).astype(jnp.float32))

    return losses


def _make_statistics(spec: ModelSpec, config: Config, mesh: Mesh) -> Callable:
    def statistics(ema: dict, batch: StepBatch) -> tuple[dict[str, Array], Array]:
        model = spec.model(sharding.gathered(mesh, ema))
        x_t, _, t = noised(spec, config, batch, "evaluation", 0)
        pooled, tokens = model.encode_supports(batch["supports"])
        _, stats = model.velocity(x_t, t, model.conditioner(pooled, tokens), diagnose=True)
        return stats | condition_statistics(pooled, batch["class_id"]), pooled

    return statistics
