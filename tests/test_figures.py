"""mfkit fid: streams, several spaces, how sure a figure is, reconstructions beside their originals."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import failed
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from test_evaluation import frechet, write

from mfkit.artifacts.safetensors_files import write_tensors
from mfkit.data.npz import NpzImages
from mfkit.data.order import spread_evenly
from mfkit.evaluation.features import TimmSpace, timm_features
from mfkit.evaluation.metrics.precision_recall import density_coverage
from mfkit.evaluation.moments import MomentSums
from mfkit.evaluation.reducers import group_of


@pytest.mark.fast
def test_moments_that_come_in_parts() -> None:
    """As NumPy has them of the whole, far from zero, where sums of squares would lose all digits."""
    rows = np.random.default_rng(0).normal(size=(500, 6)) @ np.diag([1, 2, 3, 1e-3, 5, 6]) + 1e7
    one, other = MomentSums(), MomentSums()
    for begin, end in pairwise((0, 1, 7, 7, 300, 450)):
        one.add(rows[begin:end])
    other.add(rows[450:])
    one.merge(other)
    one.merge(MomentSums())
    found = one.moments()
    assert np.allclose(found.mean, rows.mean(0), rtol=1e-14)
    assert np.allclose(found.covariance, np.cov(rows.T), rtol=1e-6, atol=1e-8)


@pytest.mark.fast
def test_groups_share_out_classes_in_blocks_and_in_turn() -> None:
    groups = group_of(range(20_000), 10)
    assert groups.bincount().tolist() == pytest.approx(10 * [2000], rel=0.01)
    for labels in (torch.arange(20_000) // 2000, torch.arange(20_000) % 10, torch.arange(20_000) % 1000 // 100):
        together = torch.zeros(10, 10).index_put_((groups, labels), torch.ones(20_000), accumulate=True)
        assert together.min() > 190 and together.max() < 210


@pytest.mark.fast
def test_density_and_coverage_by_counting() -> None:
    random = torch.Generator().manual_seed(0)
    samples, reference = (torch.randn(count, 2, generator=random, dtype=torch.float64) for count in (40, 30))
    within, covered = 0, 0
    for i in range(30):
        radius = sorted(float((reference[i] - other).norm()) for j, other in enumerate(reference) if j != i)[4]
        inside = sum(float((reference[i] - sample).norm()) <= radius for sample in samples)
        within, covered = within + inside, covered + (inside > 0)
    assert density_coverage(samples, reference, 5) == pytest.approx((within / (5 * 40), covered / 30))


def test_images_of_an_npz_are_read_one_at_a_time_and_packed_ones_too(tmp_path: Path) -> None:
    images = write(tmp_path / "plain.npz", 20, 16, 0)
    np.savez_compressed(tmp_path / "packed.npz", arr_0=images)
    np.savez(tmp_path / "columns.npz", arr_0=np.asfortranarray(images))
    for name in ("plain", "packed", "columns"):
        opened = NpzImages(tmp_path / f"{name}.npz", None)
        assert len(opened) == 20
        for index in (0, 7, 19):
            assert torch.equal(opened[index]["image"], torch.from_numpy(images[index]).permute(2, 0, 1))


def test_several_spaces_in_one_pass(mfkit, chain: Path, tmp_path: Path) -> None:
    """Each as it is alone; the first is that of the figures without a name."""
    torch.manual_seed(0)
    network = timm.create_model("convnextv2_atto", num_classes=10).eval()
    save_file(network.state_dict(), tmp_path / "convnext.safetensors")
    rae = f"{chain}/rae.safetensors"
    write(tmp_path / "real.npz", 12, 32, 1)
    command = f"fid {chain}/samples --reference real.npz -n 12"
    weights = "--features-weights convnext.safetensors"
    found = json.loads(mfkit(f"{command} --features {rae},convnextv2_atto,pixels {weights}").out)
    assert list(found["spaces"]) == [rae, "convnextv2_atto", "pixels"]
    for name, options in ((rae, ""), ("timm:convnextv2_atto", weights), ("pixels", "")):
        alone = json.loads(mfkit(f"{command} --features {name} {options}").out)
        among = found["spaces"][name.removeprefix("timm:")]
        assert among["frechet_distance"] == pytest.approx(alone["frechet_distance"], rel=1e-6)
        assert among["features"] == alone["features"] and "spaces" not in alone
    assert found["frechet_distance"] == found["spaces"][rae]["frechet_distance"]
    taken = []
    for index in range(2):
        image = Image.new("RGB", (40, 40), (index * 100, 7, 200))
        (tmp_path / "two").mkdir(exist_ok=True)
        image.save(tmp_path / f"two/{index}.png")
        pixels = torch.from_numpy(np.asarray(image.resize((224, 224))).copy()).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            taken.append(network.forward_head(network.forward_features((pixels - mean) / std), pre_logits=True))
    save = f"fid two --reference two --features convnextv2_atto {weights} --save-stats s.npz"
    assert mfkit(save).code == 0
    with np.load(tmp_path / "s.npz") as saved:
        assert saved["mu"] == pytest.approx(torch.cat(taken).mean(0).numpy(), rel=1e-3, abs=1e-4)


def test_statistics_and_images_as_references_of_several_spaces(mfkit, chain: Path, tmp_path: Path) -> None:
    rae = f"{chain}/rae.safetensors"
    command = f"fid {chain}/samples --features"
    assert mfkit(f"{command} {rae} --reference digits:train --save-stats rae.npz").code == 0
    whole = json.loads(mfkit(f"{command} {rae},pixels --reference digits:train").out)["spaces"]
    found = json.loads(mfkit(f"{command} {rae},pixels --reference rae.npz --reference digits:train").out)["spaces"]
    for name, figures in whole.items():
        assert found[name]["frechet_distance"] == pytest.approx(figures["frechet_distance"], rel=1e-6)
    failed(mfkit(f"{command} {rae},pixels --reference rae.npz"), 3, "rae.npz holds statistics of other features")
    failed(mfkit(f"{command} {rae},pixels --reference digits --save-stats x.npz"), 2, "--save-stats writes")
    failed(mfkit(f"{command} {rae} --reference digits --reference digits:train"), 2, "one set of real images")


def test_distances_over_those_of_other_real_images(mfkit, chain: Path) -> None:
    rae = f"{chain}/rae.safetensors"
    command = f"--reference digits:train --features {rae},pixels"
    found = json.loads(mfkit(f"fid {chain}/samples {command} --validation digits:heldout").out)
    ours = {name: one["frechet_distance"] for name, one in found["spaces"].items()}
    held_out = json.loads(mfkit(f"fid digits:heldout {command}").out)["spaces"]
    ratios = [ours[name] / one["frechet_distance"] for name, one in held_out.items()]
    assert found["fdr"] == pytest.approx(np.mean(ratios), rel=1e-6)
    assert found["fdr_conditions"]["of"] == "digits:heldout"
    failed(mfkit(f"fid {chain}/samples {command} --validation imagenet256"), 2, "no distance in", "is published")
    failed(mfkit(f"fid {chain}/samples {command} --validation digits:train"), 3, "that the reference does not hold")


def test_fewer_of_the_samples_are_of_all_classes_alike(mfkit, tmp_path: Path) -> None:
    """Classes in turn, as sample writes them: each tenth would be of one class."""
    labels = np.arange(200) % 10
    shade = np.broadcast_to((20 * labels)[:, None, None, None], (200, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "turn.npz", arr_0=shade, arr_1=labels)
    found = json.loads(mfkit("fid turn.npz --reference turn.npz --features pixels -n 20").out)
    assert found["samples"]["images_per_class"] == [2] and found["frechet_distance"] < 0.01
    np.savez(tmp_path / "one.npz", arr_0=shade, arr_1=0 * labels)
    found = json.loads(mfkit("fid one.npz --reference turn.npz --features pixels -n 20").out)
    assert found["samples"]["images_per_class"] == [20]


@pytest.mark.fast
def test_samples_are_spread_over_classes_and_within_them() -> None:
    turn = list(range(10)) * 12
    by_class = sorted(turn)
    for labels in (turn, by_class):
        chosen = spread_evenly(labels, 20)
        assert sorted(labels[index] for index in chosen) == sorted(list(range(10)) * 2)
        assert chosen == sorted(set(chosen))
    assert spread_evenly(by_class, 20) == list(range(0, 120, 6)) and spread_evenly(turn, 120) == list(range(120))


def test_features_that_are_no_numbers(mfkit, chain: Path, tmp_path: Path) -> None:
    with safe_open(chain / "rae.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        texts = {name: text for name, text in file.metadata().items() if name != "mfkit.digest"}
    (name,) = (name for name in tensors if name.endswith("encoder.pos_embed"))
    tensors[name] = torch.full_like(tensors[name], float("inf"))
    write_tensors(tmp_path / "odd.safetensors", tensors, texts)
    done = mfkit("fid digits:heldout --reference digits:train --features odd.safetensors")
    failed(done, 3, "frechet_distance in odd.safetensors is not finite")


def test_statistics_do_not_replace_what_they_are_of(mfkit, tmp_path: Path) -> None:
    write(tmp_path / "real.npz", 20, 8, 0)
    before = (tmp_path / "real.npz").read_bytes()
    fid = "fid real.npz --reference real.npz --features pixels --save-stats real.npz --overwrite"
    failed(mfkit(fid), 4, "real.npz is an input of this command")
    assert (tmp_path / "real.npz").read_bytes() == before


def test_the_standard_error_is_the_spread_over_other_samples(mfkit, tmp_path: Path) -> None:
    """Told from one set of samples; the spread itself is that over forty sets."""
    random = np.random.default_rng(0)

    def noise(count: int) -> np.ndarray:
        shade = random.integers(0, 200, (count, 1, 1, 3))
        return (shade + random.integers(0, 56, (count, 8, 8, 3))).astype(np.uint8)

    np.savez(tmp_path / "real.npz", arr_0=noise(1000))
    np.savez(tmp_path / "a.npz", arr_0=noise(400))
    command = "fid a.npz --reference real.npz --features pixels --resample 20"
    told = json.loads(mfkit(command).out)["standard_error"]
    real, flat = (np.load(tmp_path / "real.npz")["arr_0"]), []
    for _ in range(40):
        pooled = [rows.transpose(0, 3, 1, 2).reshape(len(rows), -1) / 255 / 3**0.5 for rows in (noise(400), real)]
        flat.append(frechet(*pooled))
    assert 0.6 < told / np.std(flat) < 1.7
    failed(mfkit("fid a.npz --reference real.npz --features pixels --resample 300"), 2, "too few for so many groups")


def test_two_results_differ_by_more_than_noise_or_not(mfkit, tmp_path: Path) -> None:
    for name, count, seed in (("real", 300, 1), ("a", 200, 1), ("b", 200, 1), ("worse", 200, 3)):
        write(tmp_path / f"{name}.npz", count, 8, seed)
    command = "fid {}.npz --reference real.npz --features pixels --resample 10"
    (tmp_path / "a.json").write_text(mfkit(command.format("a")).out)
    same = json.loads(mfkit(f"{command.format('b')} --against a.json").out)["against"]
    assert same["verdict"] == "noise" and same["difference"] == 0
    worse = json.loads(mfkit(f"{command.format('worse')} --against a.json").out)
    assert (
        worse["against"]["verdict"] == "worse"
        and worse["against"]["difference"] > worse["against"]["noise"]["of_images"]
    )
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    assert json.loads(mfkit(f"{command.format('a')} --against worse.json").out)["against"]["verdict"] == "better"
    failed(mfkit(f"{command.format('a').replace(' --resample 10', '')} --against a.json"), 2, "needs --resample")
    failed(mfkit(f"{command.format('a')} -n 100 --against a.json"), 3, "images was 200, is 100")
    for text, words in (
        ("{}", "does not tell how sure"), ('{"standard_error": "x", "frechet_distance": 1}', "damaged"),
        ('{"standard_error": 1, "frechet_distance": 1, "features": "f", "resize": "r", "reference": [1]}', "damaged"),
    ):  # fmt: skip
        (tmp_path / "odd.json").write_text(text)
        failed(mfkit(f"{command.format('a')} --against odd.json"), 3, "odd.json", words)
    failed(mfkit(f"{command.format('a').replace('real', 'b')} --against a.json"), 3, "against another reference")
    (tmp_path / "no.json").write_text("[]")
    failed(mfkit(f"{command.format('a')} --against no.json"), 3, "no.json")


@pytest.mark.fast
def test_spaces_of_fdr_see_pictures_as_its_code_does(tmp_path: Path) -> None:
    """By timm itself, which fills up pictures for its patches; a picture of 250 pixels has 16 x 16 of 16."""
    images = torch.randint(0, 256, (2, 3, 250, 250), dtype=torch.uint8)
    for name, space, arguments in (
        ("vit_tiny_patch16_224", TimmSpace("vit_tiny_patch16_224", 250, padded=256), dict(dynamic_img_pad=True)),
        ("convnextv2_atto", TimmSpace("convnextv2_atto", 250, last_map=True), None),
    ):
        torch.manual_seed(0)
        kwargs = dict(dynamic_img_size=True, **arguments) if arguments else {}
        network = timm.create_model(name, num_classes=0, **kwargs).eval()
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        expects = timm.data.resolve_model_data_config(network)
        mean, std = (torch.tensor(expects[part]).view(3, 1, 1) for part in ("mean", "std"))
        with torch.no_grad():
            tokens = network.forward_features((images / 255 - mean) / std)
        expected = tokens[:, 0] if tokens.ndim == 3 else tokens.mean((2, 3))
        ours = timm_features(space, str(tmp_path / f"{name}.safetensors"))
        assert torch.allclose(ours.of_images(images)["features"], expected, atol=1e-4)
        assert torch.allclose(ours.differentiable(images / 255), expected, atol=1e-4)


def test_names_of_metrics_and_of_features(mfkit, chain: Path) -> None:
    command = f"fid {chain}/samples --reference digits:heldout --features"
    rae = f"{chain}/rae.safetensors"
    found = json.loads(mfkit(f"{command} {rae} --metrics fid,kid,prdc,diversity").out)
    assert {"frechet_distance", "kernel_distance", "prdc", "within_class_variance"} <= set(found)
    assert found["prdc"]["neighbours"] == 5 and found["samples"]["images_per_class"] == [4]
    assert found["reference"]["images_per_class"] == [28, 31] or len(found["reference"]["images_per_class"]) == 2
    failed(mfkit(f"{command} {rae} --metrics nothing"), 2, "--metrics nothing: known are fid, sfid, kid")
    failed(mfkit(f"{command} {rae} --metrics is"), 2, "--inception-score needs Inception's")
    failed(mfkit(f"{command} {rae},{rae}"), 2, "each once")
    failed(mfkit(f"{command} dinov2,mae --features-weights x.pt"), 2, "give NAME=FILE")
    failed(mfkit(f"{command} {rae} --features-weights x.pt"), 2, "of a timm model among --features")
    both = "--features-weights mae=gone.pt --features-weights dinov2=gone.pt"
    failed(mfkit(f"{command} dinov2,mae {both}"), 3, "gone.pt")


def test_reconstructions_beside_their_originals(mfkit, chain: Path, tmp_path: Path) -> None:
    rae = f"{chain}/rae.safetensors"
    assert mfkit(f"encode digits:heldout --rae {rae} -o latents").code == 0
    assert mfkit("decode latents -o recon.npz").code == 0
    command = f"--reference digits:heldout --features {rae} --paired psnr"
    found = json.loads(mfkit(f"fid recon.npz {command}").out)["paired"]
    from mfkit.data.images import open_images

    originals, ours = open_images("digits:heldout", 32), NpzImages(tmp_path / "recon.npz", 32)
    decibels = [
        10 * np.log10(255**2 / np.mean((ours[i]["image"].double() - originals[i]["image"].double()).numpy() ** 2))
        for i in range(len(originals))
    ]
    assert found == {"psnr": pytest.approx(np.mean(decibels), rel=1e-4), "identical": 0}
    some = json.loads(mfkit(f"fid recon.npz {command} -n 20").out)["paired"]
    assert some["psnr"] == pytest.approx(np.mean([decibels[i] for i in spread_evenly(originals.labels, 20)]), rel=1e-4)
    same = json.loads(mfkit(f"fid digits:heldout {command}").out)["paired"]
    assert same == {"psnr": None, "identical": 297}
    assert mfkit(f"fid digits:heldout --reference digits:heldout --features {rae} --save-stats s.npz").code == 0
    failed(mfkit(f"fid recon.npz {command.replace('digits:heldout', 's.npz')}"), 2, "--paired needs the reference's im")
    assert mfkit("decode latents -o folder").code == 0
    failed(mfkit(f"fid folder {command}"), 3, "not in the same order")
    failed(mfkit(f"fid {chain}/samples {command}"), 3, "holds 40 images, digits:heldout 297")
    failed(mfkit(f"fid recon.npz {command},nothing"), 2, "--paired nothing: known are psnr, ssim, lpips")


def test_structural_similarity_by_windows(mfkit, chain: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    from scipy.ndimage import gaussian_filter

    images = [write(tmp_path / f"{seed}.npz", 6, 24, seed).astype(np.float64) / 255 for seed in (0, 1)]

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, (0, 1.5, 1.5, 0), truncate=5 / 1.5)[:, 5:-5, 5:-5]

    a, b = images
    means, squares = [smooth(x) for x in images], [smooth(x * x) - smooth(x) ** 2 for x in images]
    cross = smooth(a * b) - means[0] * means[1]
    top = (2 * means[0] * means[1] + 1e-4) * (2 * cross + 9e-4)
    bottom = (means[0] ** 2 + means[1] ** 2 + 1e-4) * (squares[0] + squares[1] + 9e-4)
    found = json.loads(mfkit("fid 0.npz --reference 1.npz --features pixels --paired ssim").out)["paired"]["ssim"]
    assert found == pytest.approx((top / bottom).mean(), abs=2e-3)
