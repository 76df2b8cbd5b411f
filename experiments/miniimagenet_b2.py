"""miniImageNet, five supports: DiT-B/2 in the latents of the SD VAE, supports seen by SigLIP 2.

    python -m data_prep.convert --input=miniimagenet --output_dir=datasets/miniimagenet \\
      --num_classes=60,16,20 --image_size=224
    python -m fsdit.main --config=experiments/miniimagenet_b2.py --workdir=runs/miniimagenet_b2

Both frozen networks compute beside the training step; nothing is stored. Images of 224
pixels are latents of 28 x 28 x 4 and 196 tokens of width 768 a support. Weights are
fetched from the hub once; without a network name local copies:
--config.model.encoder.location=DIRECTORY --config.model.codec.location=DIRECTORY.

188 M trainable parameters.

Hardware: meant for a TPU slice of eight chips or more; their number has to divide the batch
of 128. Not run on a TPU, nor to its end on anything else.
Expected result: none measured yet.
"""

from fsdit.config import CodecConfig, Config, DataConfig, EncoderConfig, dit


def get_config() -> Config:
    return Config(
        name="miniimagenet_b2",
        data=DataConfig(dataset_dir="datasets/miniimagenet", shots=5, source="file"),
        model=dit(
            "B",
            patch_size=2,
            remat="dots",
            encoder=EncoderConfig(name="frozen", location="google/siglip2-base-patch16-224"),
            codec=CodecConfig(name="autoencoder_kl", location="stabilityai/sd-vae-ft-ema"),
        ),
    )
