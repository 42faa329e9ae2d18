"""FID, KID, IS, precision and recall against torch-fidelity, on the same pictures and the same weights of Inception.

torch-fidelity is no dependency: `pip install -e '.[parity]'` adds it; CI does so after all else.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from test_evaluation import write

from mfkit.evaluation.features import FeatureRequest, open_features
from mfkit.evaluation.reducers import group_of

fidelity = pytest.importorskip("torch_fidelity", reason="pip install -e '.[parity]'")

from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402

COUNT = 60


class Pictures(torch.utils.data.Dataset):
    """(3, S, S) uint8."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the published layout with random numbers; the statistics of its norms are those of noise."""
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 299, 299))
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_figures_of_torch_fidelity(mfkit, tmp_path: Path, weights: Path) -> None:
    ours, real = write(tmp_path / "a.npz", COUNT, 40, 0), write(tmp_path / "b.npz", COUNT, 40, 1)
    flags = "--metrics kid,is --precision-recall --resize legacy-tf"
    done = mfkit(f"fid a.npz --reference b.npz --inception {weights} {flags}")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    theirs = fidelity.calculate_metrics(
        input1=Pictures(ours), input2=Pictures(real), fid=True, kid=True, prc=True, isc=True, kid_subset_size=COUNT,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048",
        isc_splits=1, feature_extractor_weights_path=str(weights), cuda=False, verbose=False, cache=False,
    )  # fmt: skip
    assert found["frechet_distance"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert found["kernel_distance"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert (found["precision"], found["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-4)
    extractor = FeatureExtractorInceptionV3(
        "compared", ["logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    (logits,) = extractor(Pictures(ours).images)
    groups = group_of(range(COUNT), 10)
    scores = [isc_features_to_metric(logits[groups == group], splits=1) for group in range(10)]
    means = [score["inception_score_mean"] for score in scores]
    assert found["inception_score"]["mean"] == pytest.approx(np.mean(means), rel=1e-4)


def test_the_spatial_features_by_another_graph(weights: Path, tmp_path: Path) -> None:
    """The first channels of mixed_6/conv, which torch-fidelity does not give: by a hook on its network."""
    images = Pictures(write(tmp_path / "a.npz", 3, 299, 0)).images
    extractor = FeatureExtractorInceptionV3("compared", ["2048"], feature_extractor_weights_path=str(weights))
    seen = []
    extractor.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    (pooled,) = extractor(images)
    found = open_features(FeatureRequest(inception=weights)).of_images(images, ["features", "spatial"])
    assert torch.allclose(found["features"], pooled, rtol=1e-4, atol=1e-5)
    expected = seen[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    assert torch.allclose(found["spatial"], expected, rtol=1e-4, atol=1e-5)
