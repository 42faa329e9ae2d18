"""The benchmark compares like with like, and counts what it says it counts."""

import json
from pathlib import Path

import pytest
import torch
from conftest import failed

from mfkit.benchmark.plain import plain_mean_flow
from mfkit.benchmark.rates import peak_bytes
from mfkit.flow.derivative import central_difference
from mfkit.flow.losses import mean_flow
from mfkit.models.dit import AverageVelocityDiT, DiTConfig

TINY = "--preset digits --model tiny --batch-size 8 --rounds 1 --json"


def test_our_mean_flow_loss_is_the_plain_one() -> None:
    """Value and gradients in float64; a repeated row of du/dt changes nothing."""
    torch.manual_seed(0)
    config = DiTConfig(
        channels=4, side=4, classes=3, width=24, depth=2, heads=2, head_width=32, head_depth=1, head_heads=2
    )
    network = AverageVelocityDiT(config).double()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    z, v = torch.randn(2, 8, 4, 4, 4, dtype=torch.float64)
    t = torch.linspace(0.05, 0.999, 8, dtype=torch.float64)
    r = torch.where(torch.arange(8) % 4 == 1, 0.3 * t, t)
    y = torch.arange(8) % 4
    moving = torch.tensor([1, 5, 5])

    def gradients(loss) -> tuple[float, list[torch.Tensor]]:
        value = loss.value
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return float(value.detach()), list(torch.autograd.grad(value, trained))

    keywords = dict(moving=moving, bare_u=network, power=0.7, offset=1e-3)
    ours = gradients(mean_flow(network, central_difference(5e-3), z, r, t, y, v, **keywords))
    plain = gradients(plain_mean_flow(5e-3)(network, None, z, r, t, y, v, **keywords))
    assert ours[0] == pytest.approx(plain[0], rel=1e-12)
    for own, other in zip(ours[1], plain[1], strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-12)


def test_live_bytes_are_counted() -> None:
    x = torch.ones(1000, requires_grad=True)
    x.grad = torch.zeros(1000)

    def computation() -> None:
        y = x * 2  # 4,000 bytes, and so is each of the next
        z = y.exp()
        del y
        w = z.exp()  # keeps itself and z for the backward pass; y is gone
        w.sum().backward()

    assert 4 * 4000 <= peak_bytes(computation) <= 5 * 4000 + 100
    assert peak_bytes(lambda: [torch.zeros(1000) for _ in range(3)][0]) == 12_000


@pytest.mark.parametrize("stage", ["train-teacher", "midtrain", "distill", "bootstrap"])
def test_training_stages(mfkit, stage: str) -> None:
    done = mfkit(f"bench {stage} {TINY}")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["loss_difference"] < 1e-5 and told["gradient_difference"] < 1e-4
    assert told["step_seconds"] > 0 and told["plain_step_seconds"] > 0 and 0 < told["mfu"] < 1
    assert told["peak_memory_bytes"] > told["activation_bytes"] > 0
    passes = {"train-teacher": 3, "midtrain": 3, "distill": 4.5, "bootstrap": 3.5}[stage]
    one = json.loads(mfkit("flops --preset digits --json").out)["rules"]["flops"]["generator"]
    kind = 1e9 * one if stage != "train-teacher" else told["flops_per_step"] / 8 / passes
    assert told["flops_per_step"] == pytest.approx(8 * passes * kind)
    if stage in ("distill", "bootstrap"):
        assert told["activation_bytes"] < 0.5 * told["plain_activation_bytes"]


@pytest.mark.parametrize("stage", ["encode", "trajectories", "sample", "loader", "derivative"])
def test_other_stages(mfkit, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfkit.benchmark.production._LONG", 4)  # batches
    monkeypatch.setattr("mfkit.inference.micro_batches._TOGETHER", 8 * 16)  # so that the batch of 8 is one pass
    done = mfkit(f"bench {stage} {TINY}")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    shares = {"sample": ["png_", "npz_", "tar_"], "encode": [""], "trajectories": [""]}.get(stage, [])
    assert all(f"{way}images_per_second" in told and f"{way}share_of_network" in told for way in shares)
    work = json.loads(mfkit("flops --preset digits --json").out)["rules"]["flops"]
    evaluations = {"sample": work["total"], "trajectories": 23 * work["generator"]}.get(stage)
    if evaluations:  # a teacher lacks the student's second time embedding
        work = 1e9 * told["batch_size"] * evaluations
        assert told["flops_per_step"] == pytest.approx(work, rel=0.01) and told["network_seconds"] > 0
    if stage == "derivative":
        errors = {(way["derivative"], way["precision"]): way["error"] for way in told["ways"]}
        assert errors["jvp", "float32"] < errors["central", "float32"] < 0.01
        assert errors["jvp", "bf16"] < 0.05 < errors["central", "bf16"]


def test_the_plan_takes_measured_rates(mfkit, tmp_path: Path) -> None:
    measured = {"distill": {"stage": "distill", "flops_per_second": 2.5e14}, "loader": {"stage": "loader"}}
    (tmp_path / "bench.json").write_text(json.dumps(measured))
    stages = json.loads(mfkit("flops --preset imagenet256 --plan --bench bench.json --json").out)["stages"]
    assert stages["distill"]["teraflops_per_second"] == 250 and stages["midtrain"]["teraflops_per_second"] == 400
    assert stages["distill"]["gpu_days"] == pytest.approx(stages["distill"]["flops"] / 2.5e14 / 86_400)
    failed(mfkit("flops --preset imagenet256 --bench bench.json"), 2, "--plan")
    for text in ("[]", "{", '{"loader": {"stage": "loader"}}', '{"a": 3}'):
        (tmp_path / "bench.json").write_text(text)
        failed(mfkit("flops --preset imagenet256 --plan --bench bench.json"), 3, "bench.json")
    failed(mfkit("flops --preset imagenet256 --plan --bench nowhere.json"), 3, "nowhere.json")


def test_the_plan_says_what_states_and_their_format_cost_on_disk(mfkit) -> None:
    plan = json.loads(mfkit("flops --preset imagenet256 --plan --solver-steps 7 --dtype float32 --json").out)["stages"]
    assert plan["trajectories"]["bytes"] == 50_000 * 8 * 768 * 256 * 4
    assert plan["encode"]["bytes"] == 2 * 1_281_167 * 768 * 256 * 4


def test_wrong_requests_are_refused(mfkit) -> None:
    failed(mfkit("bench everything"), 2, "everything", "distill")
    failed(mfkit("bench distill --tokens 50"), 2, "--tokens 50")
    failed(mfkit("bench encode --compile"), 2, "--compile")
    failed(mfkit("bench sample --no-plain"), 2, "--plain")
    failed(mfkit("bench loader --precision bf16"), 2, "--precision")
    failed(mfkit("bench distill --preset digits --precision tf32"), 2, "tf32")
