from unittest import mock

import pytest
import torch

from tests.evaluation.originals import fidelity


@pytest.fixture(scope="session")
def inception_network():
    """torch-fidelity's Inception with random weights, scaled so that activations do not vanish."""
    fidelity("fid")
    from torch_fidelity import feature_extractor_inceptionv3 as module

    cls = module.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with (
        mock.patch.object(module, "load_state_dict_from_url"),
        mock.patch.object(cls, "load_state_dict"),
    ):
        made = cls("random", ["2048"])
    for name, value in made.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
    return made


@pytest.fixture(scope="session")
def inception_weights(inception_network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_network.state_dict(), path)
    return path
