"""In what order a training reads: groups of one class, from any shards, by any number of processes, after any stop."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed

from mfkit.config.settings import Reading
from mfkit.data.codecs import array_bytes, array_member, label_member
from mfkit.data.dataset import IndexedTars
from mfkit.data.loader import BatchSharding, train_batches
from mfkit.data.order import ClassGroups, ClassIndices
from mfkit.data.shards import open_shards
from mfkit.errors import InputError, UsageError

COUNTS = [7, 12, 3, 20]
"""Samples of each class."""
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS)).tolist()


def write(folder: Path, labels: list, values: list | None = None) -> None:
    """Foreign shards: sample i is a latent of i, in tars of 15."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(0, len(labels), 15):
        with tarfile.open(folder / f"{shard:03d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(shard, min(shard + 15, len(labels))):
                latent = array_bytes(np.full(2, i, "f4")) if values is None else values[i]
                for suffix, data in (("latent.npy", latent), ("cls", str(labels[i]).encode())):
                    member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def opened(folder: Path, on_error="raise") -> IndexedTars:
    def decode(sample: dict) -> dict:
        return {"latent": array_member(sample, "latent.npy"), "label": label_member(sample)}

    dataset = open_shards(str(folder / "*.tar"), ("latents",), decode, Reading(on_error), arrays=("latent",))
    assert isinstance(dataset, IndexedTars)
    return dataset


def groups(dataset: IndexedTars, size: int, *, batch=4, micro=None, processes=1, first=0, last=30, seed=3) -> dict:
    """By position: the class, and the samples of the group."""
    found = {}
    for rank in range(processes):
        sharding = BatchSharding(batch, micro or batch // processes, rank, processes)
        order = ClassGroups(dataset, list("abcd"), size)
        for read in train_batches(order, sharding, first_step=first, last_step=last, seed=seed, workers=rank):
            columns = read.columns["label"].tolist(), read.columns["latent"][..., 0].int().tolist()
            found |= {p: (label, group) for p, label, group in zip(read.positions, *columns, strict=True)}
    return found


@pytest.mark.fast
def test_groups_are_of_one_class_and_every_class_comes_as_often(tmp_path: Path) -> None:
    write(tmp_path, LABELS)
    found = groups(opened(tmp_path), 3)
    assert sorted(found) == list(range(120))
    assert all(LABELS[sample] == label for label, group in found.values() for sample in group)
    for epoch in range(30):  # in another order each time
        assert sorted(found[4 * epoch + place][0] for place in range(4)) == [0, 1, 2, 3]
    assert len({tuple(found[4 * epoch + place][0] for place in range(4)) for epoch in range(30)}) > 5


@pytest.mark.fast
def test_a_class_is_read_without_replacement(tmp_path: Path) -> None:
    """In groups of 3, the 20 of a class are cut into 6 groups, then shuffled anew; over many rounds all come alike."""
    write(tmp_path, LABELS)
    found = groups(opened(tmp_path), 3, last=600)
    for label, count in enumerate(COUNTS):
        own = [group for position in sorted(found) if found[position][0] == label for group in [found[position][1]]]
        rounds = [sum(own[begin : begin + count // 3], []) for begin in range(0, len(own), count // 3)]
        assert all(len(set(part)) == len(part) for part in rounds)
        assert len({tuple(part) for part in rounds}) > len(rounds) // 2 or count == 3
        seen = Counter(sum(own, []))
        assert len(seen) == count
        assert max(seen.values()) <= 1.3 * 3 * 600 / count and min(seen.values()) >= 0.7 * 3 * 600 / count


@pytest.mark.fast
def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write(tmp_path, LABELS)
    dataset = opened(tmp_path)
    one = groups(dataset, 5)
    assert groups(dataset, 5, processes=2) == groups(dataset, 5, processes=4) == groups(dataset, 5, micro=1) == one
    later = groups(dataset, 5, first=20)
    assert later == {position: group for position, group in one.items() if position >= 80}
    assert groups(dataset, 5, seed=4) != one


@pytest.mark.fast
def test_a_process_reads_its_own_groups_only(tmp_path: Path) -> None:
    write(tmp_path, LABELS)
    read: list[list[int]] = []

    class Watched(IndexedTars):
        def read(self, indices):
            read.append(list(indices))
            return super().read(indices)

    plain = opened(tmp_path)
    for rank in range(2):
        dataset = Watched(plain.artifact, plain.index, plain.decode, plain.skips, ("latent",))
        order = ClassGroups(dataset, list("abcd"), 3)
        list(train_batches(order, BatchSharding(4, 2, rank, 2), first_step=0, last_step=1, seed=0, workers=0))
    (one, other) = ({LABELS[index] for index in indices} for indices in read)
    assert [len(indices) for indices in read] == [6, 6] and not one & other


@pytest.mark.fast
def test_a_small_class_fills_a_group_evenly(tmp_path: Path) -> None:
    write(tmp_path, LABELS)
    found = groups(opened(tmp_path), 8)
    for label, group in found.values():
        often = Counter(group).values()
        assert len(group) == 8 and len(often) == min(8, COUNTS[label]) and max(often) - min(often) <= 1


@pytest.mark.fast
def test_unlabelled_samples_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, [""] * 40)
    for path in tmp_path.glob("*.tar"):  # without a member that says a class
        with tarfile.open(path) as tar:
            kept = [(member, tar.extractfile(member).read()) for member in tar if not member.name.endswith("cls")]  # type: ignore[union-attr]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for member, data in kept:
                tar.addfile(member, io.BytesIO(data))
    order = ClassGroups(opened(tmp_path), ["all"], 20)
    groups = [order.group(position, 0) for position in range(4)]
    assert all(label == 0 for label, _ in groups)
    assert sorted([*groups[0][1], *groups[1][1]]) == list(range(40)) == sorted([*groups[2][1], *groups[3][1]])


@pytest.mark.fast
def test_what_cannot_be_grouped_is_refused(tmp_path: Path) -> None:
    write(tmp_path, LABELS)
    with pytest.raises(UsageError, match="group of 21 samples is more than its largest class has, 20"):
        ClassGroups(opened(tmp_path), list("abcd"), 21)
    with pytest.raises(InputError, match="no sample of class 4, e"):
        ClassGroups(opened(tmp_path), list("abcde"), 3)
    write(tmp_path / "unlabelled", [*LABELS[:5], "cat", *LABELS[6:]])
    with pytest.raises(InputError, match="sample 005: cls is no class index"):
        ClassGroups(opened(tmp_path / "unlabelled"), list("abcd"), 3)


@pytest.mark.fast
def test_one_of_the_same_class_stands_for_what_is_skipped(tmp_path: Path) -> None:
    labels = 10 * LABELS
    values = [array_bytes(np.full(2, i % 42, "f4")) for i in range(len(labels))]
    values[5], bad = b"no array", labels[5]
    labels[100] = "cat"
    write(tmp_path, labels, values)
    with pytest.raises(InputError):
        groups(opened(tmp_path), 30, last=20)
    dataset = opened(tmp_path, "skip")
    with_skips = groups(dataset, 30, last=40)
    assert any(label == bad for label, _ in with_skips.values())
    assert all(LABELS[value] == label for label, group in with_skips.values() for value in group)
    assert dataset.skips.count() == 2
    assert groups(opened(tmp_path, "skip"), 30, last=40, processes=2) == with_skips


@pytest.mark.fast
def test_a_class_that_is_all_unreadable_ends_the_run(tmp_path: Path) -> None:
    labels = [0] * 600 + [1, 1]
    values = [array_bytes(np.zeros(2, "f4"))] * 600 + [b"no array"] * 2
    write(tmp_path, labels, values)
    order = ClassGroups(opened(tmp_path, "skip"), ["a", "b"], 4)
    with pytest.raises(InputError, match="no sample that could stand for sample 60"):
        for position in range(2):
            order.read([position], 0)


@pytest.mark.fast
def test_class_indices_alone_come_in_turn() -> None:
    order = ClassIndices(range(7))
    labels = torch.cat([order.read(range(begin, begin + 21), 0)["label"] for begin in (0, 21)])
    assert torch.equal(labels.view(-1, 7).sort(1).values, torch.arange(7).repeat(6, 1))
    assert len({tuple(part) for part in labels.view(-1, 7).tolist()}) == 6
    skewed = ClassIndices([0, 0, 0, 1]).read(range(40), 0)["label"].view(-1, 4)
    assert torch.equal(skewed.sum(1), torch.ones(10, dtype=torch.long))


def test_commands_say_what_groups_need(chain: Path, mfkit) -> None:
    command = f"bootstrap --init {chain}/cmt.safetensors --objective drifting --steps 2 -o x.safetensors "
    failed(
        mfkit(command + f"--latents 'pipe:cat {chain}/latents/*.tar'"), 2, "groups of one class", "is a stream", "-o"
    )
    failed(mfkit(command + "--real 1000"), 2, "1000 samples is more than its largest class has, 15")
    failed(mfkit(command + "--class-dropout 0.1"), 2, "trains every row with its label")
    failed(mfkit(command + "--batch-size 100"), 2, "does not divide by the 48 rows")
