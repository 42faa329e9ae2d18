"""Fréchet post-training: the loss against eigenvalues and differences, its moments, and what is said of it after."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import close, failed
from safetensors.torch import load_file, save_file
from test_evaluation import save_inception
from test_resume import stopped_again_and_again
from test_training import difference
from torch import Tensor

from mfkit.autoencoders.rae import RAEFile
from mfkit.evaluation.features import FeatureRequest, open_features, rae_features
from mfkit.flow.objectives.base import Batch, Features, Models
from mfkit.flow.objectives.frechet import Frechet, squared_distance, symmetric_root
from mfkit.flow.random import Draws
from mfkit.flow.views import VIEWS
from mfkit.training import spaces

EXACT = torch.device("cpu")


def moments(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(5, 5, generator=draw, dtype=torch.float64)
    vectors = torch.randn(count, 5, generator=draw, dtype=torch.float64) @ mix + seed
    return vectors.mean(0), torch.cov(vectors.T, correction=0)


@pytest.mark.fast
def test_the_distance_by_the_eigenvalues_of_the_covariance_product() -> None:
    """Of C' C, which is not symmetric; also where a covariance is singular."""
    for count in (50, 4):
        (mean, covariance), (real_mean, real) = moments(count, 0), moments(60, 1)
        values = np.linalg.eigvals((real @ covariance).numpy())
        exact = (
            (mean - real_mean).square().sum()
            + covariance.trace()
            + real.trace()
            - 2 * np.sqrt(values.real.clip(min=0)).sum()
        )
        found = squared_distance(mean, covariance, real_mean, symmetric_root(real))
        assert float(found) == pytest.approx(float(exact), rel=1e-5 if count == 4 else 1e-12)
    assert abs(float(squared_distance(real_mean, real, real_mean, symmetric_root(real)))) < 1e-9


@pytest.mark.fast
def test_its_gradient_by_differences() -> None:
    (mean, covariance), (real_mean, real) = moments(50, 0), moments(60, 1)
    root = symmetric_root(real)
    leaves = mean.requires_grad_(), covariance.requires_grad_()
    exact = torch.autograd.grad(squared_distance(*leaves, real_mean, root), leaves)
    draw = torch.Generator().manual_seed(2)
    for _ in range(5):
        steps = [torch.randn(value.shape, generator=draw, dtype=torch.float64) for value in leaves]
        steps[1] = steps[1] + steps[1].T
        moved = [[v.detach() + sign * 1e-6 * s for v, s in zip(leaves, steps, strict=True)] for sign in (1, -1)]
        ends = [squared_distance(*one, real_mean, root) for one in moved]
        along = sum(float((g * s).sum()) for g, s in zip(exact, steps, strict=True))
        assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(along, rel=1e-6)
    singular = torch.diag(torch.tensor([1.0, 2, 0, 0, 0], dtype=torch.float64)).requires_grad_()
    squared_distance(mean.detach(), singular, real_mean, root).backward()
    assert singular.grad is not None and singular.grad.isfinite().all()


def models(network, objective: Frechet, reference: tuple[Tensor, Tensor] | None = None) -> Models:
    """The views of latents (2, 2, 2) that the objective names."""
    views = {name: VIEWS[name] for name in objective.space}
    sizes = {name: view(torch.zeros(1, 2, 2, 2)).shape[1:] for name, view in views.items()}
    known = {name: reference or (torch.zeros(d), torch.eye(d)) for name, (_, d) in sizes.items()}
    features = Features(
        lambda x: {name: view(x) for name, view in views.items()},
        {name: (m, d) for name, (m, d) in sizes.items()}, lambda name: known[name], EXACT,
    )  # fmt: skip
    made = Models(network, network, features=features)
    return Models(network, network, state=objective.initial_state(made), features=features)


def batch(positions: range, stage: str = "test") -> Batch:
    draws = Draws(0, stage, positions)
    return Batch({}, torch.zeros(len(positions)), positions, torch.zeros(len(positions)), draws, 1.0, (2, 2, 2))


def affine(shift: Tensor, spread: Tensor):
    return lambda z, r, t, y: z - (shift + spread * z)


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["average", "queue"])
@pytest.mark.parametrize("space", ["latent", "token"])
def test_moments_are_those_of_what_was_made(kind: str, space: str) -> None:
    """By hand: of the start, then of a moving average, or of a queue whose oldest samples go."""
    objective = Frechet(space=(space,), moments=kind, moments_decay=0.7, moment_samples=30)
    network = affine(torch.tensor(0.5), torch.tensor(2.0))
    own = models(network, objective)
    objective.begin(own, [batch(range(8), "start"), batch(range(8, 30), "start")])

    def made(one: Batch) -> Tensor:
        return VIEWS[space](0.5 + 2 * objective.noise(one)[0]).flatten(0, 1).double()

    held = made(batch(range(30), "start"))
    mean, second = held.mean(0), held.T @ held / len(held)
    per_sample = len(held) // 30
    for step in range(4):
        close(own.state[f"{space}.mean"], mean)
        close(own.state[f"{space}.second"], second)
        positions = range(12 * step, 12 * step + 12)
        new = made(batch(positions))
        of_step = torch.cat([held, new])
        if kind == "average":
            mean = 0.7 * mean + 0.3 * new.mean(0)
            second = 0.7 * second + 0.3 * new.T @ new / len(new)
            expected = mean, second
        else:
            expected = of_step.mean(0), of_step.T @ of_step / len(of_step)
            held = of_step[12 * per_sample :]
            mean, second = held.mean(0), held.T @ held / len(held)
        covariance = expected[1] - torch.outer(expected[0], expected[0])
        identity = torch.eye(len(mean), dtype=torch.float64)
        exact = squared_distance(expected[0], covariance, 0 * mean, identity)
        found = objective(own, batch(positions))
        assert float(found.parts[f"frechet.{space}"]) == pytest.approx(float(exact), rel=1e-5)
        assert float(found.value) == pytest.approx(float(exact / (exact + 0.01)), rel=1e-5)


@pytest.mark.fast
def test_an_affine_generator_reaches_the_moments() -> None:
    objective = Frechet(space=("latent", "mean-token"), moments_decay=0.9, moment_samples=2)
    shift, spread = torch.zeros(2, 1, 1, requires_grad=True), torch.full((2, 1, 1), 1.5, requires_grad=True)
    own = models(affine(shift, spread), objective)
    for space, scale in (("latent", 1.0), ("mean-token", 0.25)):
        d = len(own.state[f"{space}.mean"])
        own.state[f"{space}.reference_mean"].fill_(2)
        own.state[f"{space}.reference_root"].copy_(0.5 * scale**0.5 * torch.eye(d))
        own.state[f"{space}.second"].copy_(torch.eye(d))
    optimizer = torch.optim.Adam([shift, spread], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):
        optimizer.zero_grad()
        objective(own, batch(range(64 * step, 64 * step + 64))).value.backward()
        optimizer.step()
        schedule.step()
    assert shift.flatten().tolist() == pytest.approx([2, 2], abs=0.02)
    assert spread.abs().flatten().tolist() == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["average", "queue"])
def test_pieces_change_no_gradient(kind: str) -> None:
    objective = Frechet(space=("latent", "token"), moments=kind, moments_decay=0.5, moment_samples=20)

    def gradient(pieces: int) -> Tensor:
        shift, spread = torch.ones(2, 1, 1, requires_grad=True), torch.full((2, 1, 1), 1.5, requires_grad=True)
        own = models(affine(shift, spread), objective)
        objective.begin(own, [batch(range(20), "start")])
        for loss in objective.losses(own, batch(range(12)), pieces):
            (loss.value / pieces).backward()
        assert shift.grad is not None and spread.grad is not None
        return torch.cat([shift.grad, spread.grad]).flatten()

    whole = gradient(1).double()
    for pieces in (2, 3, 12):
        close(gradient(pieces), whole)


@pytest.mark.parametrize("space", ["rae", "timm", "inception-clean", "inception-legacy-tf", "pixels"])
def test_features_with_a_gradient_are_those_of_fid(space: str, chain: Path, tmp_path: Path) -> None:
    """Of images as they are stored, up to Pillow's resize; and the gradient goes on to the images."""
    if space == "rae":
        extractor = rae_features(RAEFile.open(chain / "rae.safetensors"))
    elif space == "timm":
        import timm
        from safetensors.torch import save_file

        save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "w.safetensors")
        weights = str(tmp_path / "w.safetensors")
        extractor = open_features(FeatureRequest(features="vit_tiny_patch16_224", features_weights=weights))
    elif space == "pixels":
        extractor = open_features(FeatureRequest(features="pixels"))
    else:
        inception = save_inception(tmp_path / "inception.pt", 48)
        resize = space.removeprefix("inception-")
        extractor = open_features(FeatureRequest(inception=inception, resize=resize))  # type: ignore[arg-type]
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with_gradient = (images.float() / 255).requires_grad_()
    features = extractor.differentiable(with_gradient)
    close(features.detach(), extractor.of_images(images)["features"].double(), 1e-3)
    features[:, 0].sum().backward()  # a norm at the end makes the sum of all a constant
    assert with_gradient.grad is not None and with_gradient.grad.abs().sum() > 0


TRAIN = (
    "bootstrap --init {0}/cmt.safetensors --objective frechet --space mean-token --space rae "
    "--reference digits:heldout --moment-samples 50 --steps 4 --batch-size 16 --log-every 1 -o OUT.safetensors"
)


def test_pictures_by_two_networks_at_once(chain: Path, tmp_path: Path, mfkit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The RAE's own and one of timm, with a gradient through the decoder, in pieces and whole.

    The real images are read once for both.
    """
    readings: list[str] = []
    see = spaces.see_images
    monkeypatch.setattr(spaces, "see_images", lambda *what, **how: readings.append(what[0]) or see(*what, **how))
    torch.manual_seed(0)
    save_file(timm.create_model("convnextv2_atto", num_classes=0).state_dict(), tmp_path / "atto.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=images, arr_1=np.arange(24) % 10)
    command = (
        f"bootstrap --init {chain}/cmt.safetensors --objective frechet --space rae --space convnextv2_atto --reference "
        "real.npz --features-weights atto.safetensors --moment-samples 8 --steps 2 --batch-size 4 --log-every 1 -o"
    )
    for name, options in (("one", ""), ("pieces", "--micro-batch 2")):
        assert (done := mfkit(f"{command} {name}.safetensors {options}")).code == 0, done.err
    assert readings == ["real.npz"] * 2
    one, pieces = (load_file(f"{name}.safetensors") for name in ("one", "pieces"))
    assert difference(one, pieces) < 1e-4 < difference(load_file(chain / "cmt.safetensors"), one)
    last = json.loads((tmp_path / "one.log.jsonl").read_text().splitlines()[-1])
    assert last["frechet.rae"] > 0 and last["frechet.convnextv2_atto"] > 0


def test_micro_batches_do_what_a_whole_batch_does(chain: Path, tmp_path: Path, mfkit) -> None:
    command = TRAIN.format(chain)
    queued = command + " --moments queue"
    rows = (("rows", command + " --micro-batch 4"), ("queued-rows", queued + " --micro-batch 2"))
    for name, line in (("one", command), ("queue", queued), *rows):
        done = mfkit(line.replace("OUT", name))
        assert done.code == 0, done.err
    start = load_file(chain / "cmt.safetensors")
    for name, other in (("one", "rows"), ("queue", "queued-rows")):
        one = load_file(f"{name}.safetensors")
        assert difference(start, one) > 1e-3 and difference(one, load_file(f"{other}.safetensors")) < 1e-4
        lines, found = (
            [json.loads(line) for line in (tmp_path / f"{run}.log.jsonl").read_text().splitlines()]
            for run in (name, other)
        )
        for value in ("loss", "grad_norm", "frechet.mean-token", "frechet.rae"):
            assert [line[value] for line in found] == pytest.approx([line[value] for line in lines], rel=1e-3)


def test_numbers_that_are_not_finite(chain: Path, tmp_path: Path, mfkit) -> None:
    """Of the latents an error, of the student a divergence as everywhere."""
    bootstrap = f"bootstrap --init {chain}/cmt.safetensors --objective frechet --moment-samples 40 --batch-size 20"
    diverging = f"{bootstrap} --steps 6 --learning-rate 1e30 --max-grad-norm 0 -o d.safetensors"
    failed(mfkit(diverging), 5, "not finite")
    assert (tmp_path / "d.diverged.safetensors").exists()
    moments = torch.full((3,), torch.nan, dtype=torch.float64)
    root = torch.eye(3, dtype=torch.float64)
    assert squared_distance(moments, root * torch.inf, moments, root).isnan()


def test_stopped_and_resumed_to_the_same_bytes(chain: Path, tmp_path: Path) -> None:
    """With the moments, which are in the checkpoint; and drifting, with its groups."""
    common = f"--init {chain}/cmt.safetensors --steps 8 --save-every 1 --log-every 1"
    stopped_again_and_again(
        tmp_path, "KILL",
        f"bootstrap {common} --objective frechet --moment-samples 40 --batch-size 20 -o f.safetensors",
        f"bootstrap {common} --objective frechet --moments queue --moment-samples 40 --batch-size 20 -o q.safetensors",
        f"bootstrap {common} --objective drifting --generated 8 --extra 4 --real 16 --batch-size 16 --micro-batch 4 "
        "-o d.safetensors",
    )  # fmt: skip


def test_what_was_trained_on_is_said_ever_after(chain: Path, tmp_path: Path, mfkit, caplog) -> None:
    done = mfkit(TRAIN.format(chain).replace("OUT", "f"))
    assert done.code == 0, done.err
    for command in (
        "bootstrap --init f.safetensors --objective drifting --steps 1 -o g.safetensors",
        "sample g.safetensors -n 40 -o samples.npz",
        "fid digits:heldout --reference digits:train --features rae.safetensors --save-stats s.npz",
    ):
        command = command.replace("rae.safetensors", f"{chain}/rae.safetensors")
        assert mfkit(command).code == 0, command
    measured = mfkit(f"fid samples.npz --reference digits:train --features {chain}/rae.safetensors")
    found = json.loads(measured.out)
    assert [one["space"] for one in found["trained_spaces"]] == ["mean-token", "rae"]
    assert found["trained_spaces"][1]["features_digest"] == found["features_digest"]
    several = json.loads(
        mfkit(f"fid samples.npz --reference digits:train --features {chain}/rae.safetensors,pixels").out
    )["spaces"]
    assert [one.get("trained_on") for one in several.values()] == [True, None]
    pixels = json.loads(mfkit("fid samples.npz --reference digits:train --features pixels").out)
    assert found["untrained"]["frechet_distance"] == pixels["frechet_distance"]
    assert "trained by its distance in mean-token, rae" in caplog.text
    alone = json.loads(mfkit(f"fid samples.npz --reference s.npz --features {chain}/rae.safetensors").out)
    assert alone["untrained"] is None and "statistics alone" in caplog.text
    assert "trained_spaces" not in json.loads(
        mfkit("fid digits:heldout --reference digits:train --features pixels").out
    )
    Path("fid.json").write_text(measured.out)
    assert mfkit("export g.safetensors --fid fid.json -o exported").code == 0
    card = Path("exported/README.md").read_text()
    assert "trained by its Fréchet distance in these spaces" in card and "- mean-token: latents, mean-token" in card
    assert f"pixels, pooled to 8 x 8, not trained on: {pixels['frechet_distance']:.4g}" in card


def test_statistics_that_fid_wrote_are_the_reference(chain: Path, tmp_path: Path, mfkit) -> None:
    """As good as the images, and no latents are needed; those of another space are refused by name."""
    rae = f"{chain}/rae.safetensors"
    for name, features in (("s", rae), ("p", "pixels")):
        assert (
            mfkit(f"fid digits:train --reference digits:heldout --features {features} --save-stats {name}.npz").code
            == 0
        )
    command = f"bootstrap --init {chain}/cmt.safetensors --objective frechet --space rae --steps 2 --batch-size 8 "
    command += "--moment-samples 20 --log-every 1 -o OUT.safetensors --reference"
    assert mfkit(command.replace("OUT", "images") + " digits:heldout").code == 0
    assert mfkit(command.replace("OUT", "both") + " p.npz --reference s.npz").code == 0
    one, other = (load_file(f"{name}.safetensors") for name in ("images", "both"))
    assert difference(one, other) < 1e-5
    failed(mfkit(command.replace("OUT", "x") + " p.npz"), 2, "--space rae needs --reference", "other features")
    stored = dict(np.load("s.npz"))
    stored["sigma"][0, 0] = np.nan
    np.savez("n.npz", **stored)
    failed(mfkit(command.replace("OUT", "x") + " n.npz"), 2, "not finite")


def test_what_cannot_be_a_space_is_refused(chain: Path, mfkit) -> None:
    command = f"bootstrap --init {chain}/cmt.safetensors --objective frechet --steps 1 -o x.safetensors "
    for options, code, word in (
        ("--space rae", 2, "--space rae needs --reference"),
        ("--space pixels", 2, "nothing is trained there"),
        ("--space nothing --reference digits", 2, "nothing"),
        ("--class-dropout 0.1", 2, "trains every row with its label"),
        ("--space mean-token --latents nowhere", 3, "nowhere"),
        ("--moments queue --moment-samples 100", 2, "--moment-samples 100 is less than a step's 250 samples"),
        ("--moments queue --moments-decay 0.5", 2, "--moments-decay is of --moments average"),
        ("--reference digits", 2, "--reference is of spaces of the picture"),
        ("--resize legacy-tf", 2, "--inception and --resize are of --space inception"),
        ("--features-weights x", 2, "--features-weights are of one --space"),
        ("--space rae --reference digits --reference digits:train", 2, "one set of real images is enough"),
        ("--space rae --reference nowhere.npz", 3, "nowhere.npz"),
        (f"--space rae --reference digits --latents {chain}/latents", 2, "--latents"),
    ):
        failed(mfkit(command + options), code, word)


def test_an_imported_student_decodes_by_the_rae_of_its_latents(chain: Path, mfkit) -> None:
    torch.save(load_file(chain / "mft.safetensors"), "student.pt")
    assert mfkit("import student.pt -o student.safetensors --preset digits").code == 0
    command = (
        "bootstrap --init student.safetensors --objective frechet --space rae --reference digits:heldout --steps 1 "
    )
    command += "--batch-size 8 --moment-samples 20 -o x.safetensors"
    failed(mfkit(command + f" --space mean-token --latents {chain}/traj"), 3, "traj")
    done = mfkit(command + f" --space mean-token --latents {chain}/latents")
    assert done.code == 0, done.err
