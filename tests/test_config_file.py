"""Options from a TOML file: under those of the command line, over the preset's; and a run written down as one."""

import json
import tomllib
from pathlib import Path

import pytest
from conftest import failed

from mfkit.artifacts.artifact import open_artifact

TRAININGS = {
    "train-rae": "train-rae digits:train --encoder tiny",
    "train-teacher": "train-teacher {chain}/latents --seed 2 --objective reflow",
    "midtrain": "midtrain {chain}/traj --teacher {chain}/teacher.safetensors --late-r",
    "distill": "distill --teacher {chain}/teacher.safetensors --derivative jvp --ema 0.9,0.99 --guidance-interval 0 1",
    "bootstrap": "bootstrap --init {chain}/cmt.safetensors --objective drifting --field token --jitter 0.1",
    "train-mean-flow": "train-mean-flow {chain}/latents --model tiny",
}


@pytest.mark.parametrize("command", TRAININGS)
def test_a_run_written_down_is_the_run(mfkit, chain: Path, tmp_path: Path, command: str) -> None:
    line = TRAININGS[command].format(chain=chain).replace("latents --seed 2", "traj --seed 2") + " -o out.safetensors"
    described, written = mfkit(f"{line} --dry-run"), mfkit(f"{line} --dry-run --format toml")
    assert described.code == written.code == 0, described.err + written.err
    (tmp_path / "run.toml").write_text(written.out)
    assert set(tomllib.loads(written.out)) == {command}
    again = mfkit(f"{command} --config run.toml --dry-run")
    assert again.out == described.out, again.err


def test_which_goes_before_which(mfkit, chain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        f'seed = 3\n"learning-rate" = 1e-3\nsteps = 7\n[train-teacher]\nlatents = "{chain}/latents"\nsteps = 8\n'
        "weight_decay = 0.5\n[sample]\nnfe = 4\n"
    )

    def settings(rest: str) -> dict:
        done = mfkit(f"train-teacher {rest} -o x.safetensors --dry-run")
        assert done.code == 0, done.err
        return json.loads(done.out)["settings"]

    plain = settings(f"{chain}/latents")
    for option in ("--config mine.toml", "--config=mine.toml", "--preset ./mine.toml", "--preset=mine.toml"):
        found = settings(f"{option} --steps 9")
        changed = {name: value for name, value in found.items() if value != plain[name]}
        assert changed == {"seed": 3, "learning_rate": 1e-3, "steps": 9, "weight_decay": 0.5}, option
    (tmp_path / "later.toml").write_text("seed = 4\n")
    found = settings("--config mine.toml --config later.toml")
    assert (found["seed"], found["steps"]) == (4, 8)


def test_the_record_has_the_options_of_the_file(mfkit, chain: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f'[bootstrap]\ninit = "{chain}/cmt.safetensors"\nsteps = 2\nbatch-size = 8\noutput = "s.safetensors"\n'
    )
    assert mfkit("bootstrap --config run.toml --seed 5").code == 0
    command = open_artifact(tmp_path / "s.safetensors").provenance.command
    expected = (
        f"mfkit bootstrap --init {chain}/cmt.safetensors --steps 2 --batch-size 8 --output s.safetensors --seed 5"
    )
    assert command == expected
    settings = open_artifact(tmp_path / "s.safetensors").provenance.settings
    assert settings["steps"] == 2 and settings["learning_rate"] > 0 and settings["objective"] == "mean-flow"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# mine\nstepps = 3", "mine.toml:2: train-teacher has no option stepps; did you mean steps?"),
        ("steps = 'many'", "mine.toml:1: steps: "),
        ("\n[train-teacher]\nsteps = 2.5", "mine.toml:3: steps: "),
        ("steps = true", "mine.toml:1: steps is True"),
        ("steps = [1]", "mine.toml:1: steps is [1]; it takes one value"),
        ("ema = 'fast'", "mine.toml:1: ema: "),
        ("dry-run = 1", "mine.toml:1: dry-run is 1; it is true or false"),
        ("config = 'other.toml'", "mine.toml:1: train-teacher has no option config"),
        ("\n\n[nonsense]\nsteps = 2", "mine.toml:3: there is no command nonsense"),
        ("objective = 'other'", "mine.toml:1: objective: "),
        ("steps = ", "Invalid value"),
        ("[sample]\nsteps = 1\n[train-teacher]\nnfe = 1", "mine.toml:4: train-teacher has no option nfe"),
    ],
)
def test_what_a_file_may_not_say(mfkit, chain: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    failed(mfkit(f"train-teacher {chain}/latents --config mine.toml -o x.safetensors"), 2, words)


def test_the_last_preset_counts_file_or_name(mfkit, chain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("steps = 7\n")
    for presets in ("--preset small --preset mine.toml", "--preset mine.toml --preset small"):
        done = mfkit(f"train-teacher {chain}/latents {presets} -o x.safetensors --dry-run")
        assert done.code == 0, done.err
        found = json.loads(done.out)["settings"]
        assert (found["steps"], found["learning_rate"]) == (7, 2e-3)


def test_files_that_are_not_there(mfkit, chain: Path) -> None:
    failed(mfkit(f"train-teacher {chain}/latents --config gone.toml -o x.safetensors"), 2, "gone.toml")
    failed(mfkit(f"train-teacher {chain}/latents --format toml -o x.safetensors"), 2, "--format is of --dry-run")
