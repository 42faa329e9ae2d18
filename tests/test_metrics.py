"""Metrics against closed forms, scipy and counts done by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import failed
from live_bytes import peak_bytes

from mfkit.evaluation.metrics.diversity import nearest_distances, within_class_variance
from mfkit.evaluation.metrics.frechet import frechet_distance
from mfkit.evaluation.moments import Moments


@pytest.mark.fast
def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    one = Moments(np.array([0.0, 1.0]), np.diag([4.0, 9.0]))
    other = Moments(np.array([3.0, 1.0]), np.diag([1.0, 25.0]))
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 4)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


@pytest.mark.fast
@pytest.mark.parametrize("count", [400, 12])
def test_frechet_distance_agrees_with_scipys_square_root(count: int) -> None:
    """12 samples in 20 dimensions make singular covariances."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(count, 20)), random.normal(size=(count, 20)) @ random.normal(size=(20, 20)) + 0.3
    ours = frechet_distance(Moments.of(a), Moments.of(b))
    ca, cb = np.cov(a.T), np.cov(b.T)
    offset = 1e-9 * np.eye(20)
    root = scipy.linalg.sqrtm((ca + offset) @ (cb + offset)).real
    theirs = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.fast
def test_within_class_variance_ignores_differences_between_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    images = 0.1 * torch.randn(2000, 3, 2, 2, generator=generator) + labels.view(-1, 1, 1, 1)
    assert within_class_variance(images, labels) == pytest.approx(12 * 0.01, rel=0.05)
    assert within_class_variance(labels.float().view(-1, 1), labels) == 0


@pytest.mark.fast
def test_pixels_are_compared_a_part_at_a_time() -> None:
    """Of bytes, as of numbers in [0, 1], without making numbers of all of them at once."""
    images, real = (torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8) for count in (900, 1100))
    labels = torch.arange(900) % 3
    numbers = images.double().flatten(1) / 255
    exact = torch.cdist(numbers, real.double().flatten(1) / 255).min(1).values / (3 * 256) ** 0.5
    for a, b in ((images, real), (images.float() / 255, real.float() / 255)):
        assert torch.allclose(nearest_distances(a, b).double(), exact, atol=1e-5)
        variance = np.mean([float(numbers[labels == label].var(0).sum()) for label in range(3)])
        assert within_class_variance(a, labels) == pytest.approx(variance, rel=1e-6)
    held = peak_bytes(lambda: (nearest_distances(images, real), within_class_variance(images, labels)))
    assert held < 4 * real.numel()


def test_nearest_distances_find_copies() -> None:
    reference = torch.rand(600, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    images = torch.stack([reference[5], reference[7] + 0.01])
    assert nearest_distances(images, reference).tolist() == pytest.approx([0, 0.01], abs=1e-3)


COUNTED: list[dict] = []


def counts(mfkit) -> dict:
    """Those of the networks at 256 pixels, which take seconds, once."""
    if not COUNTED:
        COUNTED.append(json.loads(mfkit("flops --preset imagenet256 --json").out))
    return COUNTED[0]


def test_flops_of_the_published_networks(mfkit) -> None:
    """157 + 106 = 263 at 256 pixels, as the MF-RAE paper counts."""
    rules = counts(mfkit)["rules"]
    published = {"generator": 157, "decoder": 106, "total": 263}
    for part, value in published.items():
        assert rules["macs_without_attention"][part] == pytest.approx(value, rel=0.01)
    assert rules["macs"]["generator"] == pytest.approx(161.6, rel=0.001)
    assert rules["flops"]["total"] == pytest.approx(2 * rules["macs"]["total"])


def test_vanilla_mean_flow_is_set_beside(mfkit) -> None:
    """114 + 310 = 424 and -38% in the paper; at 512 pixels it gives 1051 for MF-RAE, attention left out as at 256."""
    table = counts(mfkit)["vanilla_mean_flow"]
    rule = table["rules"]["macs_without_attention"]
    assert (rule["generator"], rule["decoder"], rule["total"]) == pytest.approx((114, 310, 424), rel=0.01)
    assert table["saved"]["macs_without_attention"] == pytest.approx(0.38, abs=0.005)
    larger = json.loads(mfkit("flops --preset imagenet512 --json").out)["rules"]
    assert larger["macs_without_attention"]["total"] == pytest.approx(1051, rel=0.01)


def test_counts_as_text_name_their_rules(mfkit) -> None:
    lines = mfkit("flops --preset imagenet256").out.splitlines()
    row = next(line for line in lines if line.startswith("macs_without_attention "))
    assert row.split()[1:4] == ["156.8", "106.6", "263.4"] and row.endswith("37.9%")
    assert any(
        line.startswith("macs_without_attention: ") and "attention's two products left out" in line for line in lines
    )


def test_the_cost_of_a_recipe_by_hand(mfkit) -> None:
    one = counts(mfkit)["rules"]["flops"]["generator"] * 1e9
    cost = json.loads(mfkit("plan --preset imagenet256 --rate 100 --images 1000 --trajectories 10 --json").out)
    stages = cost["stages"]
    assert stages["train-teacher"]["flops"] == pytest.approx(100_000 * 1024 * 3 * one)
    assert stages["midtrain"]["flops"] == pytest.approx(27_000 * 256 * 3 * one)
    assert stages["distill"]["flops_per_step"] == pytest.approx(256 * (1 + 3 + 2 / 4) * one)
    assert stages["bootstrap"]["flops_per_step"] == pytest.approx(256 * (3 + 2 / 4) * one)
    assert stages["trajectories"]["flops"] == pytest.approx(10 * 16 * one)
    assert stages["trajectories"]["bytes"] == 10 * 17 * 768 * 16 * 16 * 2
    assert stages["encode"]["bytes"] == 2 * 1000 * 768 * 16 * 16 * 2
    assert stages["distill"]["gpu_days"] == pytest.approx(stages["distill"]["flops"] / 100e12 / 86400)
    assert cost["total"]["flops"] == pytest.approx(sum(stage["flops"] for stage in stages.values()))
    assert stages["trajectories"]["flops_per_sample"] == pytest.approx(16 * one)
    assert {stage: told["gpu_days"] for stage, told in cost["paper"].items()} == {
        "train-teacher": 78, "midtrain": 2.1, "distill": 21
    }  # fmt: skip
    drifting = cost["drifting"]["stage"]
    assert drifting["flops"] == pytest.approx(10_000 * 32 * (3 * 64 + 192) * one)
    assert drifting["bytes_read_per_step"] == 32 * 256 * 768 * 16 * 16 * 2
    assert cost["drifting"]["total"]["flops"] == pytest.approx(
        cost["total"]["flops"] - stages["distill"]["flops"] - stages["bootstrap"]["flops"] + drifting["flops"]
    )
    told = cost["paper"]["train-teacher"]
    assert told["flops"] == pytest.approx(800 * 1_281_167 * 3 * one)
    assert told["teraflops_per_second"] == pytest.approx(told["flops"] / 78 / 86400 / 1e12)
    text = mfkit("plan --preset imagenet256").out
    assert "train-teacher: the paper trains for 800 epochs" in text
    assert "GPU-days" in text and "distill" in text and "400 x 10^12" in text


def test_the_plan_takes_measured_rates(mfkit, tmp_path: Path) -> None:
    measured = {"distill": {"stage": "distill", "flops_per_second": 2.5e14}, "loader": {"stage": "loader"}}
    (tmp_path / "bench.json").write_text(json.dumps(measured))
    stages = json.loads(mfkit("plan --preset imagenet256 --bench bench.json --json").out)["stages"]
    assert json.loads(mfkit("flops --preset imagenet256 --plan --bench bench.json --json").out)["stages"] == stages
    assert stages["distill"]["teraflops_per_second"] == 250 and stages["midtrain"]["teraflops_per_second"] == 400
    assert stages["distill"]["gpu_days"] == pytest.approx(stages["distill"]["flops"] / 2.5e14 / 86_400)
    for text in ("[]", "{", '{"loader": {"stage": "loader"}}', '{"a": 3}'):
        (tmp_path / "bench.json").write_text(text)
        failed(mfkit("plan --preset imagenet256 --bench bench.json"), 3, "bench.json")
    failed(mfkit("plan --preset imagenet256 --bench nowhere.json"), 3, "nowhere.json")


def test_the_plan_says_what_states_and_their_format_cost_on_disk(mfkit) -> None:
    plan = json.loads(mfkit("plan --preset imagenet256 --solver-steps 7 --dtype float32 --json").out)["stages"]
    assert plan["trajectories"]["bytes"] == 50_000 * 8 * 768 * 256 * 4
    assert plan["encode"]["bytes"] == 2 * 1_281_167 * 768 * 256 * 4


def test_attention_is_counted_by_hand(mfkit) -> None:
    """q k^T and its product with v: 2 N^2 width multiply-adds a block."""
    rules = json.loads(mfkit("flops --preset digits --json").out)["rules"]
    by_hand = 16**2 * 2 * (4 * 96 + 2 * 128) / 1e9
    assert rules["macs"]["generator"] - rules["macs_without_attention"]["generator"] == pytest.approx(by_hand, rel=1e-6)


def test_inception_weights_that_cannot_be_downloaded_or_are_others(mfkit, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = "fid digits:heldout --reference digits:heldout"
    failed(mfkit(command), 3, "pass --inception FILE, or other --features")
    (tmp_path / "mfkit/pt_inception-2015-12-05-6726825d.pth").write_bytes(b"other weights")
    failed(mfkit(command), 3, "pt_inception-2015-12-05-6726825d.pth is not the published file")


def test_fid_of_images_with_themselves_is_zero(mfkit, chain: Path) -> None:
    result = mfkit(f"fid digits:heldout --reference digits:heldout --features {chain}/rae.safetensors --diversity")
    measured = json.loads(result.out)
    assert measured["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert measured["within_class_variance"]["ratio"] == pytest.approx(1)
    assert measured["nearest_reference_distance"]["95%"] == pytest.approx(0, abs=1e-3)


def test_fid_says_its_conditions(mfkit, chain: Path) -> None:
    result = mfkit(f"fid {chain}/samples --reference digits:train --features {chain}/rae.safetensors")
    samples = json.loads(result.out)["samples"]
    assert samples["images"] == 40 and samples["nfe"] == 1 and samples["labels"] == "equal" and samples["seed"] == 0
    assert samples["model_digest"].startswith("sha256:") and samples["precision"] == "float32"
    assert mfkit(f"sample {chain}/mft.safetensors -n 40 -o x.npz").code == 0
    drawn = json.loads(mfkit(f"fid x.npz --reference digits:train --features {chain}/rae.safetensors").out)["samples"]
    names = ("images", "nfe", "labels", "seed", "model_digest", "time_shift", "solver", "precision")
    assert {name: drawn[name] for name in names} == {name: samples[name] for name in names}


def test_fid_agrees_with_features_taken_by_hand(mfkit, chain: Path) -> None:
    import mfkit as package
    from mfkit.data.images import open_images

    result = mfkit(f"fid {chain}/samples --reference digits:heldout --features {chain}/rae.safetensors")
    rae = package.load(chain / "rae.safetensors")
    features = []
    for location in (str(chain / "samples"), "digits:heldout"):
        source = open_images(location, 32)
        images = torch.stack([source[i]["image"] for i in range(len(source))]).float() / 255
        features.append(Moments.of(rae.encode(images).mean((2, 3)).numpy()))
    assert json.loads(result.out)["frechet_distance"] == pytest.approx(frechet_distance(*features), rel=1e-4)
