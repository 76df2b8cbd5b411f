"""The metrics: what each is called, means, and which values of it are good."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is presented.

    better: which values are good; "real": those near the value of real images. share: whether
    it is a share of images, from 0 to 1.
    """

    label: str
    group: Literal[
        "fidelity to the set", "fidelity to the class", "use", "variety", "copying", "by pixels"
    ]
    better: Literal["higher", "lower", "real"]
    meaning: str
    share: bool = False


METRICS = {
    "frechet_distance": Metric(
        "FD",
        "fidelity to the set",
        "lower",
        "Fréchet distance between Gaussians fitted to the critic's features of the images and of "
        "half of the real images; every column has as many images; interval by jackknife over "
        "groups of classes",
    ),
    "kernel_distance": Metric(
        "KID",
        "fidelity to the set",
        "lower",
        "kernel distance: squared MMD of the critic's features under the cubic kernel, unbiased; "
        "interval of two standard errors over random subsets of images",
    ),
    "gaussian_distance": Metric(
        "CMMD",
        "fidelity to the set",
        "lower",
        "1000 times the squared MMD of the critic's features, scaled to unit length, under a "
        "Gaussian kernel, unbiased; interval of two standard errors over random subsets of images",
    ),
    "precision": Metric(
        "precision",
        "fidelity to the set",
        "higher",
        "share of samples that are as near to a real image as its neighbours are",
        share=True,
    ),
    "recall": Metric(
        "recall",
        "fidelity to the set",
        "higher",
        "share of real images that are as near to a sample as its neighbours are",
        share=True,
    ),
    "density": Metric(
        "density",
        "fidelity to the set",
        "higher",
        "number of neighbourhoods of real images in which a sample lies, over k; 1 where the "
        "distributions are equal",
    ),
    "coverage": Metric(
        "coverage",
        "fidelity to the set",
        "higher",
        "share of real images that have a sample in their neighbourhood",
        share=True,
    ),
    "top1": Metric(
        "top-1 retrieval",
        "fidelity to the class",
        "higher",
        "share whose nearest real image of the split, without the episode's supports, is of "
        "the right class, or of one that shares an identical image with it",
        share=True,
    ),
    "top1_exact": Metric(
        "top-1 retrieval, exact class",
        "fidelity to the class",
        "higher",
        "the same, but classes that share an image do not count as right",
        share=True,
    ),
    "top5": Metric(
        "top-5 retrieval",
        "fidelity to the class",
        "higher",
        "share for which a right class is among the five nearest",
        share=True,
    ),
    "classifier": Metric(
        "few-shot classifier",
        "use",
        "higher",
        "accuracy on real images of a classifier trained on these images alone; in the column "
        "of copied supports, on all supports",
        share=True,
    ),
    "classifier_with_supports": Metric(
        "few-shot classifier, with supports",
        "use",
        "higher",
        "accuracy on real images of a classifier trained on the real supports and these images",
        share=True,
    ),
    "pairwise_distance": Metric(
        "pairwise distance",
        "variety",
        "real",
        "mean distance between two images of one episode",
    ),
    "lpips": Metric(
        "LPIPS",
        "variety",
        "real",
        "mean perceptual distance between two images of one episode",
    ),
    "support_distance": Metric(
        "distance to the nearest support",
        "copying",
        "real",
        "mean distance of an image to the nearest of its episode's supports",
    ),
    "near_copies": Metric(
        "near-copies",
        "copying",
        "lower",
        "share of images that are as near to a support as the nearest twentieth of real images",
        share=True,
    ),
    "training_distance": Metric(
        "distance to the nearest training image",
        "copying",
        "real",
        "mean distance of an image to the nearest image of the training split",
    ),
    "inception_distance": Metric(
        "Inception FID",
        "fidelity to the set",
        "lower",
        "the FID as torch-fidelity computes it, to compare with papers; it does not depend on "
        "the critic",
    ),
}

# Metrics that are also computed by the pixels, where these are not the critic; their names there
# begin with BY_PIXELS.
BY_PIXELS = "pixel_"
_OF_PIXELS = (
    *("frechet_distance", "precision", "recall", "density", "coverage", "top1"),
    *("pairwise_distance", "support_distance", "near_copies"),
)
METRICS |= {
    BY_PIXELS + name: dataclasses.replace(
        METRICS[name],
        label=f"{METRICS[name].label}, by pixels",
        group="by pixels",
        meaning=METRICS[name].meaning.replace("the critic's features", "the pixels"),
    )
    for name in _OF_PIXELS
}

# Metrics of a short table, the most important first -> their names there.
SHORT = {
    "top1": "recognised",
    "frechet_distance": "FD",
    "recall": "recall",
    "pairwise_distance": "pairwise distance",
    "near_copies": "near-copies",
}
