"""The Diffusion Transformer and the complete few-shot model.

    latents -> patches -> L blocks, with the condition of `conditioning.py` -> velocity

The blocks are in `block.py`.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fsdit.config import ModelConfig
from fsdit.models import layers
from fsdit.models.block import (
    Diagnostics,
    DiTBlock,
    Modulation,
    Products,
    modulation_width,
    products,
)
from fsdit.models.conditioning import Condition, SupportConditioner
from fsdit.models.encoder import FeatureShape, LearnedEncoder
from fsdit.models.multihead import KeysAndValues

_TIME_FEATURES = 256
# For rows of an array that all exist, each named once: gathers and scatters need no checks.
_ONCE = {"unique_indices": True, "mode": "promise_in_bounds"}

# Images (B, K, H, W, C) uint8 where the encoder is learned; the outputs of a frozen one,
# {"pooled": (B, K, E), "tokens": (B, K, T, E)}.
Supports = Array | dict[str, Array]


class Route(NamedTuple):
    """Blocks that only some patches pass; the others skip them, and are there again after them.

    kept: the patches that pass, different ones for each example. first, last: the blocks after
    the first `first` ones, up to number `last`.
    """

    kept: Int[Array, "B P"]
    first: int
    last: int


class FewShotDiT(nnx.Module):
    """Encoder (if it is learned), conditioning and DiT, over latents (h, w, c).

    features: shape of the frozen encoder's outputs, which are the supports then. None: the
    encoder is learned, and the supports are images.
    products: computes the modulation of all blocks, where their kernels are not complete.
    """

    def __init__(
        self,
        config: ModelConfig,
        latent_shape: tuple[int, int, int],
        image_size: int,
        channels: int,
        features: FeatureShape | None,
        *,
        products: Products = products,
        rngs: nnx.Rngs,
    ):
        dim, dtype = config.hidden_size, jnp.dtype(config.dtype)
        self.patch_size = config.patch_size
        self.latent_shape = latent_shape
        self.scan_layers, self.remat, self.dtype = config.scan_layers, config.remat, dtype
        self.depth, self.products = config.depth, products
        self.grid = (latent_shape[0] // config.patch_size, latent_shape[1] // config.patch_size)
        patch_dim = config.patch_size**2 * latent_shape[2]

        self.encoder = (
            LearnedEncoder(
                config.encoder,
                image_size,
                channels,
                scan_layers=config.scan_layers,
                remat=config.remat,
                dtype=dtype,
                kernel=config.attention,
                rngs=rngs,
            )
            if features is None
            else None
        )
        shape = features or FeatureShape(self.encoder.dim, self.encoder.grid)
        self.conditioner = SupportConditioner(config, shape.dim, shape.grid, dtype=dtype, rngs=rngs)
        self.embed = layers.Linear(patch_dim, dim, dtype=dtype, rngs=rngs)
        self.time_in = layers.Linear(_TIME_FEATURES, dim, rngs=rngs)
        self.time_out = layers.Linear(dim, dim, rngs=rngs)
        self.use_cls = config.cross_attention == "cls"
        if self.use_cls:
            self.cls = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (dim,)))
        self.blocks = layers.stack(
            config.depth, lambda r: DiTBlock(config, self.grid, rngs=r, dtype=dtype), rngs
        )
        self.modulation = (
            Modulation(dim, modulation_width(config), dtype=dtype, rngs=rngs)
            if config.modulation == "single"
            else None
        )
        self.final_modulation = Modulation(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.final = layers.ZeroLinear(dim, patch_dim, rngs=rngs)

    def encode_supports(
        self, supports: Supports
    ) -> tuple[Float[Array, "B K E"], Float[Array, "B K T E"] | None]:
        """Returns pooled and tokens; tokens may be None where the model does not attend to them."""
        if self.encoder is None:
            return supports["pooled"], supports.get("tokens")
        return self.encoder(supports)

    def condition(self, supports: Supports) -> Condition:
        """Makes the condition; training, evaluation and sampling all call this."""
        return self.conditioner(*self.encode_supports(supports))

    def prepare(self, *conditions: Condition, rows: int) -> Condition:
        """Joins conditions for many calls of `velocity`, each for `rows` rows of x, in order.

        A condition of C rows, which divides `rows`, serves a run of rows / C with each. In place
        of the contexts there are their keys and values in all L blocks, (L, C, heads, M, d) each.
        Where few tokens attend to keys without a norm, no keys are made, and contexts stay.
        """

        def repeated(array: Array) -> Array:
            return jnp.repeat(array, rows // len(array), axis=0)

        vector = jnp.concatenate([repeated(c.vector) for c in conditions])
        contexts = [c.context for c in conditions]
        if None in contexts:
            return Condition(vector, None)
        tokens = 1 if self.use_cls else self.grid[0] * self.grid[1]
        if not self.blocks.cross.needs_keys(tokens):
            longest = max(c.shape[1] for c in contexts)  # the null may be of one token
            equal = [jnp.broadcast_to(c, (len(c), longest, c.shape[2])) for c in contexts]
            return Condition(vector, jnp.concatenate([repeated(c) for c in equal]))
        graph, parameters = nnx.split(self.blocks)

        def projected(block: nnx.State) -> tuple[KeysAndValues, ...]:
            cross = nnx.merge(graph, block).cross
            return tuple(cross.keys_and_values(c) for c in contexts)

        return Condition(vector, jax.lax.map(projected, parameters))

    def velocity(
        self,
        x: Float[Array, "B h w c"],
        t: Float[Array, "B"],
        condition: Condition,
        diagnose: bool = False,
    ) -> tuple[Float[Array, "B h w c"], Diagnostics]:
        """Predicts the velocity at x and time t, in float32.

        condition: of `condition`, or of `prepare`. Also returns, if `diagnose`, statistics with a
        leading axis of layers.
        """
        h, time, vector = self._embedded(x, t, condition)
        h, stats = self._blocks(h, self._modulation(vector), condition, diagnose)
        if diagnose:
            stats["time_norm"] = jnp.linalg.norm(time, axis=-1).mean()
            stats["condition_norm"] = jnp.linalg.norm(condition.vector, axis=-1).mean()
        return self._decoded(self._patches(h), vector), stats

    def velocity_in_training(
        self,
        x: Float[Array, "B h w c"],
        t: Float[Array, "B"],
        condition: Condition,
        layer: int = 0,
        route: Route | None = None,
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B N D"] | None]:
        """The velocity, and the tokens of the patches after `layer` blocks, None for layer 0.

        route: the blocks that only some tokens pass; `layer` must not be inside of it.
        """
        h, _, vector = self._embedded(x, t, condition)
        modulation = self._modulation(vector)
        marks = {0, layer, self.depth} | ({route.first, route.last} if route else set())
        tokens = None
        for first, last in itertools.pairwise(sorted(marks)):
            span = slice(first, last)
            if route is not None and first == route.first:
                at = h.at[jnp.arange(h.shape[0])[:, None], self._rows(route.kept)]
                passing = at.get(**_ONCE)
                passing, _ = self._blocks(
                    passing, modulation, condition, span=span, patches=route.kept
                )
                h = at.set(passing, **_ONCE)
            else:
                h, _ = self._blocks(h, modulation, condition, span=span)
            if last == layer:
                tokens = self._patches(h)
        return self._decoded(self._patches(h), vector), tokens

    def _rows(self, patches: Int[Array, "B P"]) -> Int[Array, "B rows"]:
        """The rows of tokens of these patches, after that of the class token if there is one."""
        return jnp.pad(patches + 1, ((0, 0), (1, 0))) if self.use_cls else patches

    def _embedded(
        self, x: Float[Array, "B h w c"], t: Float[Array, "B"], condition: Condition
    ) -> tuple[Float[Array, "B n D"], Float[Array, "B D"], Float[Array, "B D"]]:
        """(tokens, with the class token if there is one; embedding of the time; vector)."""
        h = self.embed(layers.patchify(x, self.patch_size).astype(self.dtype))
        h = h + layers.position_table(*self.grid, h.shape[-1]).astype(self.dtype)
        if self.use_cls:
            cls = jnp.broadcast_to(self.cls[...].astype(h.dtype), (h.shape[0], 1, h.shape[-1]))
            h = jnp.concatenate([cls, h], axis=1)
        time = self.time_out(nnx.silu(self.time_in(layers.time_features(t, _TIME_FEATURES))))
        return h, time, time + condition.vector

    def _modulation(self, vector: Float[Array, "B D"]) -> Float[Array, "L B E"]:
        """Shifts, scales and gates of all blocks."""
        if self.modulation is None:
            return self.blocks.modulation.of_all(vector, self.products)
        return self.blocks.modulation.of_all(self.modulation(vector))

    def _blocks(
        self,
        h: Float[Array, "B n D"],
        modulation: Float[Array, "L B E"],
        condition: Condition,
        diagnose: bool = False,
        span: slice = slice(None),
        patches: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B n D"], Diagnostics]:
        """Applies the blocks of `span`, by default all, to these patches, by default all."""
        projected = condition.context if isinstance(condition.context, tuple) else None

        def call(block: DiTBlock, h: Array, own: tuple) -> tuple[Array, Diagnostics]:
            modulation, keys_and_values = own
            context = condition.context if projected is None else keys_and_values
            return block(h, modulation, context, diagnose, patches)

        return layers.run_stack(
            self.blocks.without_modulation(),
            call,
            h,
            scan=self.scan_layers,
            remat=self.remat,
            own=(modulation, projected),
            span=span,
        )

    def _patches(self, h: Float[Array, "B n D"]) -> Float[Array, "B N D"]:
        """The tokens without the class token."""
        return h[:, 1:] if self.use_cls else h

    def _decoded(
        self, h: Float[Array, "B N D"], vector: Float[Array, "B D"]
    ) -> Float[Array, "B h w c"]:
        """The velocity that the last tokens stand for, in float32."""
        shift, scale = jnp.split(self.final_modulation(vector)[:, None], 2, axis=-1)
        patches = self.final(layers.modulated_norm(h, shift, scale, jnp.float32))
        return layers.unpatchify(patches, *self.latent_shape[:2], self.patch_size)
