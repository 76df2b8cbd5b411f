"""The outputs of `data_prep.encode`: features of a frozen encoder, latents of a frozen VAE."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt8

from fsdit import storage
from fsdit.data import records
from fsdit.data.layout import DatasetInfo, FeaturesInfo, LatentsInfo
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.encoder import load_encoder
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint
from fsdit.parallel import sharding

# Arrays in the stored type, one row for each image, and whether all values of a row are finite.
Computed = tuple[Mapping[str, Float[Array, "B ..."]], Bool[Array, "B"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """One set of files: their kind ("features-siglip2"), and how a record is made.

    function: (params, images (B, H, W, C) uint8) -> Computed. payload: one row of the arrays ->
    its encoded record.
    """

    kind: str
    info: FeaturesInfo | LatentsInfo
    params: PyTree
    function: Callable[[PyTree, Array], Computed]
    payload: Callable[[Mapping[str, np.ndarray]], bytes]

    @property
    def name(self) -> str:
        return self.kind.partition("-")[2]


def features(location: str, name: str, tokens: bool, dtype: str, compute_dtype: str) -> Output:
    """Pooled features, and tokens if `tokens` says so. Raises DataError like `load_encoder`."""
    encoder, params = load_encoder(str(storage.local_copy(location)), compute_dtype)
    info = FeaturesInfo(
        encoder=location,
        sha256=encoder.checkpoint.sha256(),
        preprocessing=encoder.preprocessing.to_dict(),
        dtype=dtype,
        dim=encoder.dim,
        grid=encoder.grid,
        tokens=tokens,
    )

    def function(params: PyTree, images: UInt8[Array, "B H W C"]) -> Computed:
        pooled, every_token = encoder(params, images[:, None])
        kept = {"pooled": pooled[:, 0]}
        return _stored(kept | ({"tokens": every_token[:, 0]} if tokens else {}), dtype)

    def payload(row: Mapping[str, np.ndarray]) -> bytes:
        return records.encode_features(records.FeatureRecord(row["pooled"], row.get("tokens")))

    return Output(f"features-{name}", info, params, function, payload)


def latents(
    location: str,
    subfolder: str,
    name: str,
    dataset: DatasetInfo,
    dtype: str,
    compute_dtype: str,
) -> Output:
    """Posteriors of images and of their mirror images. Raises DataError, ConfigError."""
    folder = str(storage.local_copy(location))
    codec = autoencoder_kl.load(folder, subfolder, dtype=compute_dtype)
    info = LatentsInfo(
        codec="/".join(part for part in (location, subfolder) if part),
        sha256=open_checkpoint(folder, subfolder).sha256(),
        dtype=dtype,
        shape=codec.latent_shape(dataset.image_size, dataset.channels),
    )

    def function(codec: autoencoder_kl.AutoencoderKL, images: UInt8[Array, "B H W C"]) -> Computed:
        both = jnp.stack([images, images[:, :, ::-1]])
        # map computes one after the other, which halves the memory.
        mean, log_variance = (m.swapaxes(0, 1) for m in jax.lax.map(codec.moments, both))
        return _stored({"mean": mean, "log_variance": log_variance}, dtype)

    def payload(row: Mapping[str, np.ndarray]) -> bytes:
        return records.encode_latents(records.LatentRecord(row["mean"], row["log_variance"]))

    return Output(f"latents-{name}", info, codec, function, payload)


def _stored(arrays: Mapping[str, Array], dtype: str) -> Computed:
    stored = {name: array.astype(dtype) for name, array in arrays.items()}
    finite = [jnp.isfinite(a).all(axis=range(1, a.ndim)) for a in stored.values()]
    return stored, jnp.stack(finite).all(axis=0)


def on_local_devices(output: Output) -> Callable[[UInt8[np.ndarray, "B H W C"]], Computed]:
    """Returns the output's function with its images split over the devices of this process.

    B has to be a multiple of the number of devices.
    """
    mesh = sharding.local_mesh()
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    params = jax.device_put(output.params, everywhere)
    function = jax.jit(output.function, in_shardings=(everywhere, rows), out_shardings=rows)
    return lambda images: function(params, jax.device_put(images, rows))
