"""mfkit fid: each figure against a computation of its own, and its conditions and warnings."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
from cleanfid.fid import kernel_distance as of_clean_fid
from conftest import failed
from PIL import Image
from safetensors.torch import save_file

from mfkit.evaluation.features import FeatureExtractor, FeatureRequest, Resize, open_features
from mfkit.evaluation.image_set import see_images
from mfkit.evaluation.metrics.kernel import kernel_distance
from mfkit.evaluation.metrics.precision_recall import precision_recall
from mfkit.evaluation.reducers import SplitScores, group_of

BEFORE_MIXED_6 = "conv conv_1 conv_2 pool0 conv_3 conv_4 pool1 mixed mixed_1 mixed_2 mixed_3 mixed_4 mixed_5"
"""Names of the published file's layers."""


class _Layers(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = torch.nn.Linear(12, width, bias=False)
        for name in BEFORE_MIXED_6.split():
            self.add_module(name, torch.nn.Tanh())
        self.conv = torch.nn.Conv2d(3, 5, 9, stride=18)  # 299 pixels to 17
        self.mixed_6 = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(5, 9, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.project(pooled).tanh()[:, :, None, None]


class _Inception(torch.nn.Module):
    """The interface of inception-2015-12-05.pt with a small network in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = _Layers(width)
        self.output = torch.nn.Linear(width, 7)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        img = torch.nn.functional.interpolate(img, size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((img - 128) / 128).flatten(1)
        if return_features:
            return features
        logits = features @ self.output.weight.T
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(1)


def save_inception(path: Path, width: int) -> Path:
    torch.manual_seed(0)
    torch.jit.script(_Inception(width)).save(str(path))
    return path


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    return save_inception(tmp_path / "inception.pt", 48)


def write(path: Path, count: int, size: int, seed: int, **more: np.ndarray) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images[: count // 2] //= 1 + seed
    np.savez(path, arr_0=images, **more)
    return images


def features(inception: Path, images: np.ndarray, resize: str) -> np.ndarray:
    """By clean-fid's own functions, or the network's own resize."""
    from cleanfid.resize import build_resizer

    network = torch.jit.load(inception)
    if resize == "clean":
        shrink = build_resizer("clean")
        images = np.stack([shrink(image) for image in images])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return network.layers((pixels - 128) / 128).flatten(1).detach().numpy()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return network(pixels, return_features=True).detach().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """By scipy's square root."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    ca, cb = np.cov(a.T), np.cov(b.T)
    offset = 1e-7 * np.eye(len(ca))
    root = scipy.linalg.sqrtm((ca + offset) @ (cb + offset)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


@pytest.mark.parametrize("resize", ["clean", "legacy-tf"])
def test_fid_by_inception_and_its_square_root_by_scipy(
    mfkit, tmp_path: Path, inception: Path, resize: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours, real = write(tmp_path / "a.npz", 40, 16, 0), write(tmp_path / "b.npz", 30, 16, 1)
    done = mfkit(f"fid a.npz --reference b.npz --inception {inception} --resize {resize}")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    a, b = features(inception, ours, resize), features(inception, real, resize)
    assert result["frechet_distance"] == pytest.approx(frechet(a, b), rel=1e-3)
    assert result["resize"] == resize and "Inception" in result["features"] and result["features_digest"]
    assert result["samples"]["images"] == 40 and result["reference"]["images"] == 30
    assert result["samples"]["digest"] != result["reference"]["digest"]
    assert (
        "samples: 40 images are fewer than the 48 feature dimensions" in caplog.text and "biased upwards" in caplog.text
    )


def test_the_other_figures(mfkit, tmp_path: Path, inception: Path) -> None:
    ours, real = write(tmp_path / "a.npz", 40, 16, 0), write(tmp_path / "b.npz", 30, 16, 1)
    flags = "--kid --inception-score --precision-recall --diversity"
    result = json.loads(mfkit(f"fid a.npz --reference b.npz --inception {inception} {flags}").out)
    a, b = (torch.from_numpy(features(inception, images, "clean")) for images in (ours, real))
    assert result["kernel_distance"] == pytest.approx(kernel_distance(a.numpy(), b.numpy()), rel=1e-4)
    assert (result["precision"], result["recall"]) == precision_recall(a, b)
    network = torch.jit.load(inception)
    rows = (a @ network.output.weight.detach().T).softmax(1)  # without the bias
    splits = group_of(range(40), 10)
    scores = [score_by_definition(rows[splits == split].double()) for split in range(10)]
    assert result["inception_score"]["mean"] == pytest.approx(np.mean(scores), rel=1e-4)
    assert result["inception_score"]["std"] == pytest.approx(np.std(scores), rel=1e-3)
    assert result["within_class_variance"]["ratio"] > 1


def test_conditions_of_the_other_figures(mfkit, tmp_path: Path, inception: Path, caplog) -> None:
    """How many images a subset has, and no variance within classes where one side has no labels."""
    write(tmp_path / "a.npz", 40, 16, 0, arr_1=np.arange(40) % 4)
    write(tmp_path / "b.npz", 30, 16, 1)
    result = json.loads(mfkit(f"fid a.npz --reference b.npz --inception {inception} --kid --diversity").out)
    assert result["kernel_distance_subsets"] == {"count": 100, "size": 30}
    assert "within_class_variance" not in result and "nearest_reference_distance" in result
    assert "one side has labels" in caplog.text


@pytest.mark.parametrize("resize", ["clean", "legacy-tf"])
def test_spatial_features_of_inception(tmp_path: Path, inception: Path, resize: Resize) -> None:
    """ADM's: the first 7 channels before mixed_6, by place and then by channel; resized as by Inception's own graph."""
    images = torch.from_numpy(write(tmp_path / "a.npz", 4, 16, 0)).permute(0, 3, 1, 2)
    extractor = open_features(FeatureRequest(inception=inception, resize=resize))
    found = extractor.of_images(images, ["spatial"])["spatial"]
    if resize == "clean":
        from cleanfid.resize import build_resizer

        shrink = build_resizer("clean")
        pixels = torch.stack([torch.from_numpy(shrink(image.permute(1, 2, 0).numpy())) for image in images])
        pixels = pixels.permute(0, 3, 1, 2)
    else:
        theta = torch.eye(2, 3)
        theta[:, 2] = 1 / 16 - 1 / 299  # TensorFlow 1 aligns the corners' outer edges at the upper left
        grid = torch.nn.functional.affine_grid(theta.expand(4, 2, 3), [4, 3, 299, 299], align_corners=False)
        pixels = torch.nn.functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    layers = torch.jit.load(inception).layers
    maps = layers.conv((pixels - 128) / 128)
    for _ in range(12):
        maps = maps.tanh()
    maps = layers.mixed_6.conv(maps)
    assert found.shape == (4, 17 * 17 * 7)
    for row, column, channel in ((0, 0, 0), (3, 16, 6), (16, 2, 4)):
        expected = maps[:, channel, row, column]
        assert torch.allclose(found[:, (row * 17 + column) * 7 + channel], expected, atol=1e-4)


def test_sfid_of_images_and_of_statistics(mfkit, tmp_path: Path, inception: Path) -> None:
    ours, real = write(tmp_path / "a.npz", 12, 16, 0), write(tmp_path / "b.npz", 10, 16, 1)
    command = f"fid a.npz --inception {inception} --sfid --reference"
    result = json.loads(mfkit(f"{command} b.npz --save-stats stats.npz").out)
    extractor = open_features(FeatureRequest(inception=inception))
    taken = [
        extractor.of_images(torch.from_numpy(images).permute(0, 3, 1, 2), ["spatial"])["spatial"].double().numpy()
        for images in (ours, real)
    ]
    # tr (C1 C2)^(1/2) is the sum of the singular values of A B', the centred features over the root of N - 1.
    a, b = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in taken)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    gap = taken[0].mean(0) - taken[1].mean(0)
    expected = gap @ gap + (a**2).sum() + (b**2).sum() - 2 * cross
    assert result["spatial_frechet_distance"] == pytest.approx(expected, rel=1e-4)
    with np.load(tmp_path / "stats.npz") as saved:  # under ADM's names
        assert saved["mu_s"] == pytest.approx(taken[1].mean(0), abs=1e-5) and saved["sigma_s"].shape == (2023, 2023)
    again = json.loads(mfkit(f"{command} stats.npz").out)
    assert again["spatial_frechet_distance"] == pytest.approx(result["spatial_frechet_distance"], rel=1e-5)
    assert mfkit(f"fid a.npz --inception {inception} --reference b.npz --save-stats pooled.npz").code == 0
    failed(mfkit(f"{command} pooled.npz"), 3, "pooled.npz holds no statistics of Inception's spatial features")


def test_statistics_saved_and_used_again(mfkit, tmp_path: Path, inception: Path) -> None:
    write(tmp_path / "a.npz", 40, 16, 0)
    write(tmp_path / "b.npz", 30, 16, 1)
    command = f"fid a.npz --inception {inception} --reference"
    first = json.loads(mfkit(f"{command} b.npz --save-stats stats.npz").out)
    done = mfkit(f"{command} stats.npz")
    again = json.loads(done.out)
    assert again["frechet_distance"] == pytest.approx(first["frechet_distance"], rel=1e-6)
    assert again["reference"]["images"] == 30 and again["reference"]["of"]["digest"] == first["reference"]["digest"]
    assert again["reference"]["size"] == 16
    failed(mfkit(f"{command} stats.npz --resize legacy-tf"), 3, "stats.npz holds", "resize: clean, not legacy-tf")
    failed(mfkit(f"{command} stats.npz --kid"), 2, "--kid needs the reference's images")
    failed(mfkit(f"{command} b.npz --save-stats stats.npz"), 4, "stats.npz exists")
    failed(mfkit(f"{command} b.npz --save-stats stats.pt"), 2, "must end in .npz")


def test_reference_batches_as_adm_publishes_them(
    mfkit, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics of many images beside some of them: the statistics count, and they were resized as legacy-tf does."""
    monkeypatch.setattr("mfkit.evaluation.moments.INCEPTION_WIDTH", 48)
    inception = save_inception(tmp_path / "inception.pt", 48)
    write(tmp_path / "a.npz", 40, 16, 0)
    many = write(tmp_path / "many.npz", 60, 16, 1)
    taken = features(inception, many, "legacy-tf").astype(np.float64)
    np.savez(tmp_path / "adm.npz", arr_0=many[:10], mu=taken.mean(0), sigma=np.cov(taken.T))
    command = f"fid a.npz --inception {inception} --reference"
    done = mfkit(f"{command} adm.npz")
    expected = json.loads(mfkit(f"{command} many.npz --resize legacy-tf").out)["frechet_distance"]
    assert json.loads(done.out)["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    assert json.loads(done.out)["resize"] == "legacy-tf"
    failed(mfkit(f"{command} adm.npz --resize clean"), 2, "do not say their resize", "--force")
    forced = json.loads(mfkit(f"{command} adm.npz --resize clean --force").out)
    assert forced["resize"] == "clean" and forced["frechet_distance"] != pytest.approx(expected, rel=1e-5)
    failed(mfkit(f"{command} adm.npz --resize clean --force --save-stats s.npz"), 2, "with a resize of others")
    assert json.loads(mfkit(f"{command} many.npz --save-stats mine.npz").out)["resize"] == "clean"
    mixed = json.loads(mfkit(f"{command} adm.npz --reference mine.npz").out)
    assert mixed["resize"] == "legacy-tf" and mixed["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    both = json.loads(mfkit(f"{command} adm.npz --precision-recall").out)  # by the images, where statistics do not do
    assert both["reference"]["images_seen"] == 10 and both["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(8), sigma=np.eye(8))
    failed(mfkit(f"{command} narrow.npz"), 3, "narrow.npz", "8 dimensions")
    np.savez(tmp_path / "object.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    failed(mfkit(f"{command} object.npz"), 3, "object.npz", "object are no numbers")


def test_images_of_unequal_sizes_are_said(
    mfkit, tmp_path: Path, inception: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.npz", 6, 16, 0)
    write(tmp_path / "b.npz", 6, 32, 1)
    done = mfkit(f"fid a.npz --reference b.npz --inception {inception}")
    assert done.code == 0 and "the samples are of 16 pixels, the reference of 32" in caplog.text
    for size in (16, 24):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        for number in range(3):
            Image.new("RGB", (size, size), (number, size, 9)).save(tmp_path / "mixed" / f"{size}-{number}.png")
    assert mfkit(f"fid a.npz --reference mixed --inception {inception}").code == 0
    assert "reference: images of 16 x 16, 24 x 24 pixels were cut and resized to 16" in caplog.text
    failed(mfkit(f"fid mixed --reference a.npz --inception {inception}"), 3, "different shapes")
    assert mfkit(f"fid a.npz --reference b.npz --inception {inception} --save-stats s.npz").code == 0
    caplog.clear()
    assert mfkit(f"fid a.npz --reference s.npz --inception {inception}").code == 0
    assert "the reference of 32" in caplog.text and "reference: 6 images are fewer" in caplog.text


def test_features_of_a_timm_encoder(mfkit, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "encoder.safetensors")
    ours, real = write(tmp_path / "a.npz", 6, 16, 0), write(tmp_path / "b.npz", 5, 16, 1)
    done = mfkit("fid a.npz --reference b.npz --features vit_tiny_patch16_224 --features-weights encoder.safetensors")
    assert done.code == 0, done.err

    def resized(image: np.ndarray) -> np.ndarray:
        colours = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
        return np.stack([np.asarray(colour.resize((224, 224), Image.Resampling.BICUBIC)) for colour in colours])

    def pooled(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([resized(image) for image in images])).clamp(0, 255)
        with torch.no_grad():
            return model((pixels / 255 - 0.5) / 0.5).numpy()

    result = json.loads(done.out)
    assert result["frechet_distance"] == pytest.approx(frechet(pooled(ours), pooled(real)), rel=1e-3)
    assert "vit_tiny_patch16_224" in result["features"]
    done = mfkit("fid a.npz --reference b.npz --features vit_tiny_patch16_224 --features-weights gone.pt")
    failed(done, 3, "gone.pt does not exist")


def test_options_that_contradict_each_other(mfkit, chain: Path, tmp_path: Path) -> None:
    command = f"fid digits:heldout --reference digits:heldout --features {chain}/rae.safetensors"
    failed(mfkit(f"{command} --resize legacy-tf"), 2, "--resize legacy-tf is Inception's way")
    failed(mfkit(f"{command} --inception x.pt"), 2, "--inception is the file of --features inception")
    failed(mfkit(f"{command} --inception-score"), 2, "--features inception")
    (tmp_path / "x.pt").write_bytes(b"no network")
    torch.jit.script(torch.nn.Linear(3, 3)).save(str(tmp_path / "y.pt"))
    failed(mfkit("fid digits --reference digits --inception y.pt"), 3, "y.pt is TorchScript of another network")
    failed(mfkit("fid digits --reference digits --inception x.pt"), 3, "x.pt is not a file of tensors alone")


def test_precision_and_recall_by_hand() -> None:
    """Two clusters in the reference, one in the samples; one sample near it, one far off."""
    reference = torch.tensor([0.0, 1, 2, 3, 4, 100, 101, 102, 103, 104])[:, None]
    samples = torch.tensor([0.5, 1.5, 2.5, 5.5, 50.0])[:, None]
    precision, recall = precision_recall(samples, reference, neighbours=2)
    # The ball of 4 reaches its second neighbour, 2, and so 6; the far sample lies in none.
    assert precision == 4 / 5
    # The samples' second neighbours are 2, 1, 2, 4 and 47.5 away: their balls end at 2.5, 2.5, 4.5, 9.5 and 97.5.
    assert recall == 5 / 10


def test_kernel_distance_is_unbiased_and_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(30, 4)), random.normal(size=(30, 4)) + 0.5

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / 4 + 1) ** 3

    same = [kernel(x[i], x[j]) for x in (a, b) for i in range(30) for j in range(30) if i != j]
    cross = [kernel(x, y) for x in a for y in b]
    exact = sum(same) / (30 * 29) - 2 * np.mean(cross)
    assert kernel_distance(a, b) == pytest.approx(exact)  # every subset of 30 of 30 is all of them
    state = np.random.get_state()[1].copy()
    many = random.normal(size=(150, 8)), random.normal(size=(120, 8)) + 0.1
    ours = kernel_distance(*many)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(0)
    assert ours == pytest.approx(of_clean_fid(*many, num_subsets=100, max_subset_size=1000), rel=1e-9)


def score_by_definition(rows: torch.Tensor) -> float:
    """exp of the mean over images of KL(p(y | x) || p(y))."""
    marginal = rows.mean(0)
    return float((rows * (rows / marginal).log()).sum(1).mean().exp())


@pytest.mark.parametrize("labels", [torch.arange(8000) % 4, torch.arange(8000) // 2000], ids=["in turn", "in blocks"])
def test_inception_score_of_known_classes(labels: torch.Tensor) -> None:
    """Whatever the order of the classes, each split has all of them."""
    for rows, expected in ((torch.eye(4)[labels], 4), (torch.full((8000, 4), 0.25), 1)):
        splits = SplitScores()
        for part in torch.arange(8000).split(30):
            splits.add(part.tolist(), rows[part])
        assert splits.scores().tolist() == pytest.approx(10 * [expected], rel=1e-4)


def test_images_are_decoded_and_resized_by_the_threads_that_read(tmp_path: Path) -> None:
    """Beside the network, on the main thread; and the network gets what they made."""
    for number in range(12):
        (tmp_path / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(tmp_path / "images" / str(number % 2) / f"{number}.png")
    resized_by, seen_by = [], []

    def prepare(image: torch.Tensor) -> torch.Tensor:
        resized_by.append(threading.current_thread())
        return image[:, ::10, ::10].float()

    def extract(inputs: torch.Tensor, outputs: object) -> dict[str, torch.Tensor]:
        seen_by.append(threading.current_thread())
        assert inputs.shape[1:] == (3, 4, 4)
        return {"features": inputs.mean((2, 3))}

    extractor = FeatureExtractor(extract, ("features",), {}, lambda images: images, prepare)
    for workers in (0, 2):
        views = [(extractor, [("features", "moments")])]
        (seen,) = see_images(str(tmp_path / "images"), views, None, batch_size=5, workers=workers)
        assert seen.moments("features").mean[0] == pytest.approx(20 * 5.5)
    main = threading.current_thread()
    assert set(resized_by[:12]) == set(seen_by) == {main}
    assert len(resized_by) == 24 and main not in resized_by[12:]
