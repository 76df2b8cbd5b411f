"""The networks of a run, built from its configuration and its dataset."""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
from flax import nnx

from fsdit.config import ModelConfig
from fsdit.errors import ConfigError, divisors, would
from fsdit.models import projection
from fsdit.models.attention import packed
from fsdit.models.block import Products, products
from fsdit.models.codec import LatentCodec, PixelCodec
from fsdit.models.dit import FewShotDiT
from fsdit.models.encoder import FeatureShape
from fsdit.models.multihead import is_few
from fsdit.randomness import stream_key

_Side = tuple[str, int]  # what tokens are, and how many there are

PROJECTION = "projection"  # name of its parameters, beside those of the model


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What the trainable model is built from; its parameters are a nested dict beside it.

    image_size: height and width of the images in pixels. channels: 1 or 3. codec: gives shapes
    and `sample`; its parameters are not used from here. features: shape of the frozen encoder's
    outputs; None: the encoder is learned. projection: width of the tokens that training projects
    those of a block to; 0: it does not. products: computes the modulation of all blocks; a train
    step whose devices hold parts of the kernels has its own. by_device: whether the model is
    called for the rows of one device alone, as in a train step. The packed kernel of attention
    serves there only: XLA cannot split it over devices, and elsewhere the plain one computes.
    """

    config: ModelConfig
    image_size: int
    channels: int
    codec: LatentCodec = PixelCodec()
    features: FeatureShape | None = None
    projection: int = 0
    products: Products = products
    by_device: bool = False

    def __post_init__(self):
        patches = [("patch_size", self.config.patch_size, self.latent_shape[0])]
        if self.features is None:
            patches += [("encoder.patch_size", self.config.encoder.patch_size, self.image_size)]
        for name, patch, size in patches:
            if size % patch:
                raise ConfigError(
                    f"config.model.{name}={patch} does not divide the size {size}: "
                    f"{would(patch, divisors(size))}"
                )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.codec.latent_shape(self.image_size, self.channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the DiT's patches."""
        height, width, _ = self.latent_shape
        return height // self.config.patch_size, width // self.config.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of a sample in the DiT: its patches, and the class token where there is one."""
        return math.prod(self.grid) + (self.config.cross_attention == "cls")

    @property
    def support_tokens(self) -> int:
        """Tokens that the encoder makes of a support."""
        if self.features is not None:
            return math.prod(self.features.grid)
        return (self.image_size // self.config.encoder.patch_size) ** 2

    def context_tokens(self, num_supports: int) -> int:
        """Tokens of the context that the DiT attends to; 0 where it attends to none."""
        if not self.config.use_context:
            return 0
        return self.config.num_latents or num_supports * self.support_tokens

    def check_training(self, num_supports: int) -> None:
        """Raises ConfigError where the kernel of attention cannot train this model.

        In the installed JAX, cuDNN's backward pass is for even numbers of tokens only, with a
        bias and also without one (check_is_flash_attention in
        jax/_src/cudnn/fused_attention_stablehlo.py). The packed kernel holds all logits of two
        heads in a core's memory. num_supports: those of an episode.
        """
        kernel, plain = self.config.attention, "set config.model.attention=plain"
        for sides in self._attended(num_supports):
            (_, queries), (_, keys) = sides
            for tokens, count in sides:
                if kernel == "cudnn" and count % 2:
                    raise ConfigError(
                        "config.model.attention=cudnn trains on even numbers of tokens only, and "
                        f"there are {count} {tokens}: {plain}"
                    )
            # A learned encoder may have another width; its few tokens fit all the same.
            needed = packed.memory(queries, keys, self.config.hidden_size)
            if kernel == "packed" and needed > packed.MEMORY:
                raise ConfigError(
                    f"config.model.attention=packed: the logits of {queries} x {keys} tokens do "
                    f"not fit a core's memory: {plain}"
                )

    def _attended(self, num_supports: int) -> Iterator[tuple[_Side, _Side]]:
        """Queries and keys of each attention that the kernel computes."""
        config, each = self.config, self.support_tokens
        cls = config.cross_attention == "cls"
        own = ("tokens of the DiT with its cls" if cls else "tokens of the DiT", self.num_tokens)
        yield own, own
        if self.features is None:
            yield ("tokens of a support", each), ("tokens of a support", each)
        if not config.use_context:
            return
        if config.num_latents and not is_few(
            config.num_latents, config.num_heads, config.hidden_size
        ):
            latents = ("latents of the Perceiver", config.num_latents)
            yield latents, ("tokens of all supports", num_supports * each)
        queries = 1 if cls else self.num_tokens
        if not is_few(queries, config.num_heads, config.hidden_size):
            yield own, ("tokens of the context", self.context_tokens(num_supports))

    def _build(self, rngs: nnx.Rngs) -> FewShotDiT:
        size, config = (self.image_size, self.channels), self.config
        if config.attention == "packed" and not self.by_device:
            config = dataclasses.replace(config, attention="plain")
        return FewShotDiT(
            config,
            self.latent_shape,
            *size,
            self.features,
            products=self.products,
            rngs=rngs,
        )

    @functools.cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.graphdef(nnx.eval_shape(lambda: self._build(nnx.Rngs(params=0))))

    def init(self, seed: int) -> dict:
        """Makes new parameters, a pure function of the seed."""
        model = self._build(nnx.Rngs(params=stream_key(seed, "init")))
        params = nnx.to_pure_dict(nnx.state(model))
        if self.projection:
            key = stream_key(seed, f"init/{PROJECTION}")
            made = projection.init(key, self.config.hidden_size, self.projection)
            params[PROJECTION] = made
        return params

    def model(self, params: dict) -> FewShotDiT:
        """The model with these parameters; it does not hold the projection."""
        own = {name: part for name, part in params.items() if name != PROJECTION}
        return nnx.merge(self._graph, nnx.State(own))

    def abstract_params(self) -> dict:
        """Returns shapes and types of the parameters; nothing is computed."""
        return jax.eval_shape(lambda: self.init(0))
