"""Reading ahead and in place: what arrives is what one row at a time would be, whatever lies in the shards."""

import gzip
import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mfkit.data.codecs import array_bytes, array_member, label_member
from mfkit.data.loader import Layout, feed
from mfkit.data.prefetch import ahead, behind, in_order
from mfkit.data.shards import write_index, write_shard, write_stream
from mfkit.data.stream import ShardFolder, ShardStream, open_shards
from mfkit.errors import InputError

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


def folder(path: Path, rows: list[dict]) -> ShardFolder:
    half = len(rows) // 2
    shards = [write_shard(path / f"{k}.tar", part) for k, part in enumerate((rows[:half], rows[half:]))]
    write_index(path, "latents", {}, {}, shards)
    source = open_shards(str(path), "latents", decode)
    assert isinstance(source, ShardFolder)
    source.classes = CLASSES
    return source


def test_rows_are_read_in_place_as_they_are_decoded(tmp_path: Path, monkeypatch) -> None:
    source = folder(tmp_path / "s", samples(40))
    order = [39, 0, 17, 20, 19, 5]
    rows = [source[i] for i in order]
    assert source.gathers
    monkeypatch.setattr(source, "decode", None)  # not needed for rows that are laid out alike
    batch = source.gather(order)
    assert batch["latent"].dtype == torch.float16 and batch["latent"].shape == (6, 3, 4, 5)
    assert torch.equal(batch["latent"], torch.stack([row["latent"] for row in rows]))
    assert batch["label"].tolist() == [row["label"] for row in rows]


def test_rows_laid_out_otherwise_are_decoded(tmp_path: Path) -> None:
    rows = samples(8)
    rows[3] = {"__key__": "x", "latent.npy": rows[3]["latent.npy"]}  # without a label
    rows[4]["latent.npy"] = array_bytes(np.full((3, 4, 5), 2.5, np.float64))
    rows[5]["extra.txt"] = b"more"
    source = folder(tmp_path / "s", rows)
    batch = source.gather(range(8))
    for i in range(8):
        assert torch.equal(batch["latent"][i], source[i]["latent"].half()) and batch["label"][i] == source[i]["label"]


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
def test_a_bad_row_of_a_batch_is_named(tmp_path: Path, spoil, words: str) -> None:
    rows = samples(6)
    spoil(rows)
    with pytest.raises(InputError, match=words):
        folder(tmp_path / "s", rows).gather(range(6))


def test_a_damaged_byte_of_a_header_is_found(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", samples(6))
    data = bytearray((tmp_path / "s/0.tar").read_bytes())
    sample = len(source.gather([0])) and int(source._places[1][1])
    for place in (3, 130, 1024 + 3, 1024 + 512 + 8):  # name and size of the label, name of the array, its own header
        spoilt = bytearray(data)
        spoilt[sample + place] ^= 0x55
        (tmp_path / "s/0.tar").write_bytes(spoilt)
        with pytest.raises(InputError, match=r"0\.tar"):
            source.gather([0, 1, 2])


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
    source = open_shards(str(tmp_path / "t/*.tar"), "latents", decode)
    assert isinstance(source, ShardStream)
    batches = list(feed(source, Layout(20, 20), first_step=0, last_step=3, seed=1, workers=2))
    values = torch.cat([batch.columns["latent"][:, 0] for batch in batches])
    assert sorted(values.tolist()) == list(range(60)) and values.tolist() != list(range(60))
    assert all(len(set(batch.columns["label"].tolist())) >= 6 for batch in batches)
    later = next(iter(feed(source, Layout(20, 20), first_step=2, last_step=3, seed=1, workers=0)))
    assert torch.equal(later.columns["latent"], batches[2].columns["latent"])


def test_a_stream_cut_off_in_a_file_is_not_trained_on(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write_stream(buffer, "latents", {}, {}, samples(4))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue())
    source = open_shards(str(tmp_path / "s.tar"), "latents", decode)
    assert isinstance(source, ShardStream) and source.indexed() is not None
    with tarfile.open(tmp_path / "s.tar") as tar:
        place = next(member.offset for member in tar if member.name.startswith("000003"))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue()[:place])
    source = open_shards(str(tmp_path / "s.tar"), "latents", decode)
    assert isinstance(source, ShardStream)
    with pytest.raises(InputError, match="ended early"):
        source.indexed()


def test_joined_tars_are_read_whole(tmp_path: Path) -> None:
    parts = samples(9)
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", parts[3 * shard : 3 * shard + 3])
    joined = b"".join((tmp_path / f"{shard}.tar").read_bytes() for shard in range(3))
    (tmp_path / "all.tar").write_bytes(joined)
    for location in (f"{tmp_path}/all.tar", f"pipe:cat {tmp_path}/[012].tar"):
        source = open_shards(location, "latents", decode)
        assert isinstance(source, ShardStream)
        rows = source.indexed() or [decode(sample) for sample in source.raw()]
        assert [rows[i]["label"] for i in range(len(rows))] == [int(part["cls"]) for part in parts]
    (tmp_path / "all.tar").write_bytes(joined[: 2 * len(joined) // 3 + 700])
    with pytest.raises(InputError, match="damaged or truncated"):
        list(open_shards(str(tmp_path / "all.tar"), "latents", decode).raw())  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [lambda data, place: data[:place] + b"x" * 20 + data[place + 20 :],
                                    lambda data, place: data[: place + 700]])  # fmt: skip
def test_a_damaged_tar_without_an_index_is_no_shorter_one(tmp_path: Path, damage) -> None:
    write_shard(tmp_path / "s.tar", samples(9))
    data = (tmp_path / "s.tar").read_bytes()
    with tarfile.open(tmp_path / "s.tar") as tar:
        place = next(member.offset for member in tar if member.name.startswith("000005"))
    (tmp_path / "s.tar").write_bytes(damage(data, place))
    source = open_shards(str(tmp_path / "s.tar"), "latents", decode)
    assert isinstance(source, ShardStream)
    with pytest.raises(InputError, match=r"s\.tar is damaged or truncated"):
        source.indexed()


def test_the_shuffle_buffer_of_a_stream_is_bounded_in_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", samples(4))
    source = open_shards(str(tmp_path / "s.tar"), "latents", decode)
    assert isinstance(source, ShardStream)
    size = len(samples(1)[0]["latent.npy"]) + 1
    assert source.samples_within(10 * size, 2000) == 10
    assert source.samples_within(10 * size, 3) == 3 and source.samples_within(1, 3) == 1


def test_few_files_stay_open(tmp_path: Path, monkeypatch) -> None:
    """A folder of ImageNet's latents has more shards than a process may have files."""
    source = folder(tmp_path / "s", samples(6))
    expected = source.gather(range(6))["latent"]
    source.close()
    monkeypatch.setattr("mfkit.data.indexed._KEPT_OPEN", 1)

    def open_files() -> int:
        return sum(str(link.resolve()).startswith(str(tmp_path)) for link in Path("/proc/self/fd").iterdir())

    for _ in range(3):
        assert torch.equal(source.gather(range(6))["latent"], expected)
        assert open_files() == 1
    source.close()
    assert open_files() == 0 and torch.equal(source[5]["latent"], expected[5])


def test_items_are_made_ahead_in_order_and_end_with_their_reader() -> None:
    made: list[int] = []
    seen = threading.Event()

    def items():
        for i in range(1000):
            made.append(i)
            if i == 3:
                seen.set()
            yield i

    ready = ahead(items(), depth=2)
    assert next(ready) == 0
    assert seen.wait(5)  # 3 was begun while only 0 had been asked for
    assert [next(ready) for _ in range(5)] == [1, 2, 3, 4, 5]
    ready.close()
    count = len(made)
    assert count < 12 and threading.active_count() < 50
    assert len(made) == count


def test_a_writer_behind_gets_all_and_its_errors_come_back() -> None:
    assert behind(list, iter(range(50))) == list(range(50))
    made: list[int] = []

    def refuse(items) -> None:
        next(items)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        behind(refuse, (made.append(i) or i for i in range(1000)))
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
        behind(write, items())
    assert seen == ["cleaned up"] or seen == [1, "cleaned up"]


@pytest.mark.parametrize("way", [lambda f, i: ahead(map(f, i)), lambda f, i: in_order(f, i, 3)])
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

    assert list(in_order(slow_first, range(20), 4)) == [i * i for i in range(20)]


def test_a_stream_of_unlike_samples_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small first sample, and then large ones: an error well before all are held."""
    monkeypatch.setattr("mfkit.data.loader.SHUFFLE_BYTES", 1 << 20)
    read: list[str] = []
    small, large = np.zeros((1, 2, 2), np.float32), np.zeros((64, 32, 32), np.float32)
    rows = [{"__key__": f"{i}", "latent.npy": array_bytes(large if i else small), "cls": b"0"} for i in range(60)]
    write_shard(tmp_path / "x.tar", rows)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes(), 1))

    def decode(sample: dict) -> dict:
        return {"latent": array_member(sample, "latent.npy"), "label": 0}

    source = open_shards(f"{tmp_path}/x.tar.gz", "latents", decode)
    assert isinstance(source, ShardStream)
    one_pass = source.raw()
    monkeypatch.setattr(source, "raw", lambda: (read.append(row["__key__"]) or row for row in one_pass))
    with pytest.raises(InputError, match="much larger than its first one"):
        list(feed(source, Layout(4, 4), first_step=0, last_step=2, seed=0, workers=0))
    assert len(read) < 20
