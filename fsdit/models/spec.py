"""The networks of a run, built from its configuration and its dataset."""

import dataclasses
import functools

import jax
from flax import nnx

from fsdit.config import ModelConfig
from fsdit.errors import ConfigError, divisors, would
from fsdit.models.codec import LatentCodec, PixelCodec
from fsdit.models.dit import FewShotDiT
from fsdit.models.encoder import FeatureShape
from fsdit.randomness import stream_key


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What the trainable model is built from; its parameters are a nested dict beside it.

    image_size: height and width of the images in pixels. channels: 1 or 3. codec: gives shapes
    and `sample`; its parameters are not used from here. features: shape of the frozen encoder's
    outputs; None: the encoder is learned.
    """

    config: ModelConfig
    image_size: int
    channels: int
    codec: LatentCodec = PixelCodec()
    features: FeatureShape | None = None

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

    def _build(self, rngs: nnx.Rngs) -> FewShotDiT:
        size = (self.image_size, self.channels)
        return FewShotDiT(self.config, self.latent_shape, *size, self.features, rngs=rngs)

    @functools.cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.graphdef(nnx.eval_shape(lambda: self._build(nnx.Rngs(params=0))))

    def init(self, seed: int) -> dict:
        """Makes new parameters, a pure function of the seed."""
        model = self._build(nnx.Rngs(params=stream_key(seed, "init")))
        return nnx.to_pure_dict(nnx.state(model))

    def model(self, params: dict) -> FewShotDiT:
        """The model with these parameters."""
        return nnx.merge(self._graph, nnx.State(params))

    def abstract_params(self) -> dict:
        """Returns shapes and types of the parameters; nothing is computed."""
        return jax.eval_shape(lambda: self.init(0))
