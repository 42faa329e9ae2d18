"""Reading ahead and in place: what arrives is what one sample at a time would be, whatever lies in the shards."""

import io
import random
import signal
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mfkit.artifacts.artifact import Provenance
from mfkit.data.codecs import array_bytes, array_member, label_member
from mfkit.data.dataset import IndexedTars, read_batch
from mfkit.data.index import FolderIndex, write_index
from mfkit.data.latents import open_latents
from mfkit.data.loader import BatchSharding, shuffled, train_batches
from mfkit.data.order import shuffle
from mfkit.data.prefetch import in_background, ordered_map, prefetch
from mfkit.data.shards import open_shards
from mfkit.data.stream import StreamDataset
from mfkit.data.writer import write_shard, write_stream
from mfkit.errors import InputError

pytestmark = pytest.mark.fast

CLASSES = 200


def decode(sample: dict) -> dict:
    row = {"latent": array_member(sample, "latent.npy"), "label": label_member(sample)}
    if row["label"] >= CLASSES:
        raise InputError(f"{sample['__key__']}: label {row['label']} is outside")
    return row


def samples(count: int) -> list[dict]:
    values = np.random.default_rng(0).standard_normal((count, 3, 4, 5)).astype(np.float16)
    return [
        {"__key__": f"{i:06d}", "latent.npy": array_bytes(values[i]), "cls": str(i * 7 % 150).encode()}
        for i in range(count)
    ]


def folder(path: Path, rows: list[dict]) -> IndexedTars:
    half = len(rows) // 2
    records = [write_shard(path / f"{k}.tar", part) for k, part in enumerate((rows[:half], rows[half:]))]
    alike = all(record.arrays == records[0].arrays for record in records)
    index = FolderIndex(
        samples=len(rows), shards=[record.shard for record in records], arrays=records[0].arrays if alike else {}
    )
    config = {"shape": [3, 4, 5], "class_names": [str(label) for label in range(CLASSES)]}
    write_index(path, "latents", config, Provenance(), index)
    return dataset(path)


def dataset(location: Path | str) -> IndexedTars:
    found = open_latents("latents", str(location), classes=CLASSES).dataset
    assert isinstance(found, IndexedTars)
    return found


def test_samples_are_read_in_place_as_they_are_decoded(tmp_path: Path, monkeypatch) -> None:
    """Of a folder of mfkit's, and of the same tars without their index."""
    order = [39, 0, 17, 20, 19, 5]
    for source in (folder(tmp_path / "s", samples(40)), dataset(f"{tmp_path}/s/*.tar")):
        expected = [source[i] for i in order]
        with monkeypatch.context() as patch:
            patch.setattr(source, "decode", None)  # not needed
            batch = source.read(order)
        assert batch["latent"].dtype == torch.float16 and batch["latent"].shape == (6, 3, 4, 5)
        assert torch.equal(batch["latent"], torch.stack([sample["latent"] for sample in expected]))
        assert batch["label"].tolist() == [sample["label"] for sample in expected]


def test_samples_laid_out_otherwise_are_decoded(tmp_path: Path) -> None:
    rows = samples(8)
    rows[3] = {"__key__": "x", "latent.npy": rows[3]["latent.npy"]}  # without a label
    rows[4]["latent.npy"] = array_bytes(np.full((3, 4, 5), 2.5, np.float64))
    rows[5]["extra.txt"] = b"more"
    for source in (folder(tmp_path / "s", rows), dataset(f"{tmp_path}/s/*.tar")):
        for i in range(8):
            batch = source.read([i])
            assert torch.equal(batch["latent"][0].half(), source[i]["latent"].half())
            assert batch["label"][0] == source[i]["label"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows[3].update({"cls": b"999"}), "label 999 is outside"),
        (lambda rows: rows[3].update({"cls": b"-1"}), "cls is -1"),
        (lambda rows: rows[3].update({"cls": b"x"}), "cls is no class index"),
        (lambda rows: rows[3].update({"latent.npy": b"\x93NUMPY"}), "latent.npy is no array"),
        (lambda rows: rows[3].update({"latent.npy": array_bytes(np.zeros((5, 4, 3), np.float16))}), r"\(5, 4, 3\)"),
    ],
)
def test_a_bad_sample_of_a_batch_is_named(tmp_path: Path, spoil, words: str) -> None:
    rows = samples(6)
    spoil(rows)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for row in rows:
            for suffix, data in row.items():
                if suffix != "__key__":
                    member = tarfile.TarInfo(f"{row['__key__']}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    with pytest.raises(InputError, match=rf"x\.tar: sample 000003.*{words}"):
        dataset(tmp_path / "x.tar").read(range(6))


def test_a_file_that_has_become_shorter_is_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", samples(6))
    with (tmp_path / "s/0.tar").open("r+b") as file:
        file.truncate(int(source.index.offsets["latent"][2]) + 10)
    with pytest.raises(InputError, match=r"0\.tar: sample 000002: latent is cut off"):
        source.read([0, 1, 2])


def test_shards_without_an_index_are_shuffled_as_if_they_had_one(tmp_path: Path) -> None:
    """Sorted by label, with long names and folders in them: the first batches hold all classes."""
    names = [f"{'deep/' * 30}{i:04d}" for i in range(60)]
    (tmp_path / "t").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / f"t/{shard}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for i in range(20 * shard, 20 * shard + 20):
                for suffix, data in (("cls", str(i // 6).encode()), ("latent.npy", array_bytes(np.full(2, i, "f4")))):
                    member = tarfile.TarInfo(f"{names[i]}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    source = open_shards(str(tmp_path / "t/*.tar"), ("latents",), decode)
    assert isinstance(source, IndexedTars)
    batches = list(train_batches(shuffle(source), BatchSharding(20, 20), first_step=0, last_step=3, seed=1, workers=2))
    values = torch.cat([batch.columns["latent"][:, 0] for batch in batches])
    assert sorted(values.tolist()) == list(range(60)) and values.tolist() != list(range(60))
    assert all(len(set(batch.columns["label"].tolist())) >= 6 for batch in batches)
    later = next(
        iter(train_batches(shuffle(source), BatchSharding(20, 20), first_step=2, last_step=3, seed=1, workers=0))
    )
    assert torch.equal(later.columns["latent"], batches[2].columns["latent"])


def test_a_stream_cut_off_in_a_file_is_not_trained_on(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write_stream(buffer, "latents", {}, Provenance(), samples(4))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue())
    assert len(dataset(tmp_path / "s.tar")) == 4
    with tarfile.open(tmp_path / "s.tar") as tar:
        place = next(member.offset for member in tar if member.name.startswith("000003"))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue()[:place])
    with pytest.raises(InputError, match="ended early|truncated"):
        dataset(tmp_path / "s.tar")


def test_joined_tars_are_read_whole(tmp_path: Path) -> None:
    parts = samples(9)
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", parts[3 * shard : 3 * shard + 3])
    joined = b"".join((tmp_path / f"{shard}.tar").read_bytes() for shard in range(3))
    (tmp_path / "all.tar").write_bytes(joined)
    expected = [int(part["cls"]) for part in parts]
    assert dataset(tmp_path / "all.tar").read(range(9))["label"].tolist() == expected
    stream = open_shards(f"pipe:cat {tmp_path}/[012].tar", ("latents",), decode)
    assert isinstance(stream, StreamDataset) and [sample["label"] for sample in stream.samples()] == expected
    (tmp_path / "all.tar").write_bytes(joined[: 2 * len(joined) // 3 + 700])
    with pytest.raises(InputError, match="damaged or truncated"):
        dataset(tmp_path / "all.tar")


@pytest.mark.parametrize("damage", [lambda data, place: data[:place] + b"x" * 20 + data[place + 20 :],
                                    lambda data, place: data[: place + 700]])  # fmt: skip
def test_a_damaged_tar_without_an_index_is_no_shorter_one(tmp_path: Path, damage) -> None:
    write_shard(tmp_path / "s.tar", samples(9))
    data = (tmp_path / "s.tar").read_bytes()
    with tarfile.open(tmp_path / "s.tar") as tar:
        place = next(member.offset for member in tar if member.name.startswith("000005"))
    (tmp_path / "s.tar").write_bytes(damage(data, place))
    with pytest.raises(InputError, match=r"s\.tar is damaged or truncated"):
        dataset(tmp_path / "s.tar")


def test_the_shuffle_buffer_of_a_stream_is_bounded(tmp_path: Path) -> None:
    """In samples and in bytes, whatever the first ones are like; a sample larger than all of it passes alone."""
    small, large = (torch.zeros(size, dtype=torch.uint8) for size in (1, 1000))
    made: list[int] = []

    def run(sizes: list[torch.Tensor], max_samples: int, max_bytes: int) -> int:
        """The most bytes that were held at a time."""
        made.clear()
        held = most = 0

        def items():
            nonlocal held, most
            for value in sizes:
                held += len(value)
                most = max(most, held)
                made.append(len(value))
                yield {"x": value}

        for sample in shuffled(items(), random.Random(0), max_samples, max_bytes):
            held -= len(sample["x"])
        assert held == 0 and len(made) == len(sizes)
        return most

    assert run(60 * [large], 10, 10**9) == 10 * 1000
    assert run(60 * [large], 2000, 5000) <= 6000
    assert run([small] + 60 * [large], 2000, 5000) <= 6000
    assert run(5 * [large], 2000, 1) == 1000


def test_few_files_stay_open(tmp_path: Path, monkeypatch) -> None:
    """A folder of ImageNet's latents has more shards than a process may have files."""
    source = folder(tmp_path / "s", samples(6))
    expected = read_batch(source, range(6))["latent"]
    monkeypatch.setattr("mfkit.data.dataset.MAX_OPEN_FILES", 1)
    source = dataset(tmp_path / "s")

    def open_files() -> int:
        return sum(str(link.resolve()).startswith(f"{tmp_path}/s/") for link in Path("/proc/self/fd").iterdir())

    before = open_files()
    for _ in range(3):
        assert torch.equal(source.read(range(6))["latent"], expected)
        assert open_files() == before + 1


def test_items_are_made_ahead_in_order_and_end_with_their_reader() -> None:
    made: list[int] = []
    seen = threading.Event()

    def items():
        for i in range(1000):
            made.append(i)
            if i == 3:
                seen.set()
            yield i

    ready = prefetch(items())
    assert next(ready) == 0
    assert seen.wait(5)  # 3 was begun while only 0 had been asked for
    assert [next(ready) for _ in range(5)] == [1, 2, 3, 4, 5]
    ready.close()
    count = len(made)
    assert count < 12 and threading.active_count() < 50
    assert len(made) == count


def test_a_writer_behind_gets_all_and_its_errors_come_back() -> None:
    assert in_background(list, iter(range(50))) == list(range(50))
    made: list[int] = []

    def refuse(items) -> None:
        next(items)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        in_background(refuse, (made.append(i) or i for i in range(1000)))
    assert len(made) < 20


@pytest.mark.parametrize("error", [InputError("broken"), KeyboardInterrupt()])
def test_an_error_of_the_items_lets_the_writer_clean_up(error: BaseException) -> None:
    seen: list[object] = []

    def items():
        yield 1
        raise error

    def write(ready) -> None:
        try:
            seen.extend(ready)
        finally:
            seen.append("cleaned up")

    with pytest.raises(type(error)):
        in_background(write, items())
    assert seen == ["cleaned up"] or seen == [1, "cleaned up"]


def test_a_signal_behind_the_last_item_lets_the_writer_clean_up() -> None:
    """All items have been made; the queue is full, so that their end waits to be put into it."""
    behind, seen = threading.Event(), []

    def stop(number: int, frame: object) -> None:
        behind.set()
        raise KeyboardInterrupt

    def write(ready) -> None:
        try:
            for item in ready:
                assert behind.wait(5)
                seen.append(item)
        finally:
            seen.append("cleaned up")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_background(write, range(3))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seen == [0, 1, 2, "cleaned up"]


@pytest.mark.parametrize("way", [lambda f, i: prefetch(map(f, i)), lambda f, i: ordered_map(f, i, 3)])
def test_an_error_ahead_is_raised_in_its_place(way) -> None:
    def fail(i: int) -> int:
        if i == 4:
            raise InputError("the fifth")
        return i

    found = []
    with pytest.raises(InputError, match="the fifth"):
        for item in way(fail, range(10)):
            found.append(item)
    assert found == [0, 1, 2, 3]


def test_threads_keep_the_order() -> None:
    waiting = threading.Event()

    def slow_first(i: int) -> int:
        if i == 0:
            assert waiting.wait(5)
        else:
            waiting.set()
        return i * i

    assert list(ordered_map(slow_first, range(20), 4)) == [i * i for i in range(20)]
