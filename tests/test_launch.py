"""Launchers: torchrun; accelerate on two machines and Slurm's recipe, both of them on this one."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from conftest import free_port, shell
from safetensors.torch import load_file

RECIPES = Path(__file__).parents[1] / "recipes"


def alike(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return all(float((ours[name] - theirs[name]).norm() / (ours[name].norm() + 1e-3)) < 1e-4 for name in ours)


@pytest.fixture
def command(chain: Path, mfkit) -> str:
    command = f"train-teacher {chain}/latents --optimizer adamw --steps 3 --batch-size 16 --log-every 1"
    assert mfkit(f"{command} -o one.safetensors").code == 0
    return command


def test_torchrun(tmp_path: Path) -> None:
    """Each of two processes has half of a step's samples, and of the cores unless OMP_NUM_THREADS says otherwise.

    torchrun's own setting of it to one is not the user's.
    """
    (tmp_path / "who.py").write_text(
        "import torch\n"
        "from mfkit.runtime.distributed import processes, shutdown\n"
        "from mfkit.data.loader import BatchSharding\n"
        "state = processes()\n"
        "sharding = BatchSharding(8, 2, state.process_index, state.num_processes)\n"
        "said = f'{list(sharding.positions(1))} {torch.get_num_threads()}'\n"
        "open(f'rank{state.process_index}', 'w').write(said)\n"
        "shutdown()\n"
    )
    done = shell("unset OMP_NUM_THREADS; torchrun --standalone --nproc_per_node 2 who.py", tmp_path)
    cores = len(os.sched_getaffinity(0))
    assert (tmp_path / "rank0").read_text() == f"[[8, 9], [10, 11]] {max(1, cores // 2)}", done.stderr
    assert (tmp_path / "rank1").read_text() == f"[[12, 13], [14, 15]] {max(1, cores // 2)}", done.stderr
    told = shell(f"{sys.executable} who.py", tmp_path, OMP_NUM_THREADS="2", LOCAL_WORLD_SIZE="2")
    assert (tmp_path / "rank0").read_text().endswith(f" {min(2, cores)}"), told.stderr


def test_accelerate_on_two_machines(command: str, tmp_path: Path) -> None:
    """The recipe's config, one process on each, and two launchers that meet on this machine, on its CPUs."""
    text = (RECIPES / "accelerate.yaml").read_text()
    for before, after in (
        ("num_processes: 16 ", "num_processes: 2 "), ("node-0 ", "127.0.0.1 "), ("29500", str(free_port())),
    ):  # fmt: skip
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "two.yaml").write_text(text)
    launch = f"accelerate launch --config_file two.yaml --machine_rank {{}} -m mfkit {command} -o two.safetensors"
    done = shell(f"{launch.format(1)} & {launch.format(0)} && wait $!", tmp_path)
    assert done.returncode == 0 and done.stdout == "two.safetensors\n", done.stderr
    assert alike(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert len((tmp_path / "two.log.jsonl").read_text().splitlines()) == 3


def slurm(folder: Path) -> str:
    """A Slurm of one machine: srun starts two tasks, scontrol names the node and notes what is queued again."""
    tools = {
        "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> requeued; fi',
        "srun": 'shift; pids=(); for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!); done\n'
        'trap "kill -USR1 ${pids[*]}" USR1\n'
        "code=0; for pid in ${pids[@]}; do wait $pid; last=$?; while kill -0 $pid 2>/dev/null; do wait $pid; last=$?;\n"
        "done; [ $last -le $code ] || code=$last; done; exit $code",
    }
    (folder / "bin").mkdir()
    for name, body in tools.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / "bin" / name).chmod(stat.S_IRWXU)
    shutil.copy(RECIPES / "slurm.sh", folder)
    return (
        f"export PATH=$PWD/bin:$PATH SLURM_JOB_NODELIST=node SLURM_JOB_ID={free_port()} SLURM_NTASKS=2 "
        "SLURM_NTASKS_PER_NODE=2 ACCELERATE_USE_CPU=true"
    )


def test_slurm(command: str, tmp_path: Path) -> None:
    done = shell(f"{slurm(tmp_path)}; ./slurm.sh {command} -o two.safetensors", tmp_path)
    assert done.returncode == 0 and done.stdout == "two.safetensors\n", done.stderr
    assert alike(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


def test_slurm_before_the_time_is_up(command: str, tmp_path: Path) -> None:
    """Both tasks get SIGUSR1, save together, and the job is queued again."""
    long = command.replace("--steps 3", "--steps 100000")
    done = shell(
        f"{slurm(tmp_path)}; ./slurm.sh {long} -o t.safetensors & job=$!; "
        "until grep -q '\"step\": 3' t.log.jsonl 2>/dev/null; do sleep 0.05; done; "
        "kill -USR1 $(pgrep -P $job -f srun); wait $job", tmp_path,
    )  # fmt: skip
    assert done.returncode == 138, done.stderr
    assert (tmp_path / "requeued").read_text().startswith("requeue ")
    assert list(tmp_path.glob("t.checkpoint-*.safetensors")) and not list(tmp_path.glob(".*"))
    assert done.stderr.count("SIGUSR1: saved after step") == 1
