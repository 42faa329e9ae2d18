"""mfkit bench: what it counts, against counts by hand; how fast the machine is, no test says."""

import json
from pathlib import Path

import pytest
from conftest import failed


def test_all_stages_and_the_plan_that_reads_them(mfkit) -> None:
    done = mfkit("bench all --preset digits --batch-size 8 --rounds 1 --json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    one = 1e9 * json.loads(mfkit("flops --preset digits --json").out)["rules"]["flops"]["generator"]
    passes = {"train-teacher": 3, "midtrain": 3, "distill": 4.5, "bootstrap": 3.5, "train-mean-flow": 3.5}
    passes["trajectories"] = 2 * 10 - 1  # of Heun's method
    for stage, count in passes.items():
        figures = found[stage]
        # A teacher has one embedding less than the student that flops counts.
        assert figures["flops_per_second"] * figures["seconds"] == pytest.approx(8 * count * one, rel=0.03), stage
        assert figures["samples_per_second"] * figures["seconds"] == pytest.approx(8)
        rate = figures["flops_per_second"] / figures["matmul_flops_per_second"]
        assert figures["share_of_matmul"] == pytest.approx(rate) and figures["peak_bytes"] > 2**20
    loader = found["loader"]
    assert loader["bytes_per_second"] == pytest.approx(loader["samples_per_second"] * 32 * 4 * 4 * 2)
    assert "flops_per_second" not in loader
    Path("bench.json").write_text(done.out)
    plan = json.loads(mfkit("plan --preset digits --bench bench.json --json").out)["stages"]
    for stage in ("encode", "distill"):
        assert plan[stage]["teraflops_per_second"] == pytest.approx(found[stage]["flops_per_second"] / 1e12)


def test_an_objective_and_a_size(mfkit) -> None:
    command = "bench distill --preset digits --batch-size 4 --rounds 1 --tokens 4 --json"
    done = mfkit(f"{command} --objective interval-split --activation-checkpointing")
    figures = json.loads(done.out)
    assert figures["objective"] == "interval-split" and figures["network"]["side"] == 2
    late = json.loads(mfkit(f"{command} --objective imf --late-r").out)
    assert late["late_r"] and "flops_per_second" not in late and late["samples_per_second"] > 0
    by_class = json.loads(mfkit("bench loader --objective drifting --preset digits --rounds 1 --json").out)
    assert by_class["class_group"] == 128 and by_class["bytes_per_second"] > 0
    drifting = json.loads(
        mfkit("bench bootstrap --objective drifting --preset digits --batch-size 96 --rounds 1 --json").out
    )
    Path("bench.json").write_text(json.dumps(drifting))
    plan = json.loads(mfkit("plan --preset digits --bench bench.json --json").out)
    assert plan["drifting"]["stage"]["teraflops_per_second"] == pytest.approx(drifting["flops_per_second"] / 1e12)
    assert mfkit("bench loader --preset digits --rounds 1").out.splitlines()[1].startswith("loader ")


def test_what_cannot_be_measured(mfkit) -> None:
    failed(mfkit("bench nothing"), 2, "there is no stage nothing")
    failed(mfkit("bench distill --tokens 5"), 2, "--tokens 5", "square")
    failed(mfkit("bench distill --objective cmt"), 2, "--objective cmt is not of distill")
    failed(mfkit("bench sample --compile"), 2, "--compile is of a training stage")
    failed(mfkit("bench distill --model Z"), 2, "--model Z")
    failed(mfkit("bench train-teacher --late-r"), 2, "--late-r is of a student")
    failed(mfkit("bench sample --late-r"), 2, "--late-r is of a training stage")
