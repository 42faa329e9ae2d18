"""Shards: plain WebDataset tars for any reader, random access for us, and clear words about damaged ones."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from mfkit.artifacts.artifact import Provenance, file_digest
from mfkit.data.codecs import array_bytes, array_member, decode_image, label_member, png_bytes
from mfkit.data.dataset import IndexedTars
from mfkit.data.images import open_images
from mfkit.data.index import FolderIndex, write_index
from mfkit.data.loader import BatchSharding, inference_batches, train_batches
from mfkit.data.order import shuffle
from mfkit.data.shards import open_shards
from mfkit.data.stream import StreamDataset
from mfkit.data.writer import write_shard, write_stream
from mfkit.errors import InputError, UsageError

pytestmark = pytest.mark.fast

SAMPLES = 23


def decode(sample: dict) -> dict:
    return {"latent": array_member(sample, "latent.npy"), "label": label_member(sample)}


def samples(begin: int, end: int) -> list[dict]:
    return [
        {"__key__": f"{i:05d}", "latent.npy": array_bytes(np.full((2, 3), i, np.float16)), "cls": str(i % 7).encode()}
        for i in range(begin, end)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "shards"
    records = [write_shard(path / f"{k:05d}.tar", samples(10 * k, min(10 * k + 10, SAMPLES))) for k in range(3)]
    index = FolderIndex(samples=SAMPLES, shards=[record.shard for record in records], arrays=records[0].arrays)
    write_index(path, "latents", {"shape": [2, 3, 3], "class_names": ["a"]}, Provenance(), index)
    return path


def opened(path: Path | str) -> IndexedTars | StreamDataset:
    return open_shards(str(path), ("latents",), decode)


def test_webdataset_reads_what_we_write(folder: Path) -> None:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    rows = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert [row["__key__"] for row in rows] == [f"{i:05d}" for i in range(SAMPLES)]
    assert rows[11]["latent.npy"].tolist() == [[11] * 3] * 2 and int(rows[11]["cls"]) == 11 % 7


def test_random_access_gives_the_samples_of_the_stream(folder: Path) -> None:
    source, stream = opened(folder), opened(f"pipe:cat {folder}/*.tar")
    assert isinstance(source, IndexedTars) and len(source) == SAMPLES and isinstance(stream, StreamDataset)
    streamed = list(stream.samples())
    for i in (22, 0, 9, 10, 19):
        assert torch.equal(source[i]["latent"], streamed[i]["latent"]) and source[i]["label"] == i % 7


@pytest.mark.parametrize("location", ["{}/*.tar", "{}/0000{{0..2}}.tar", "pipe:cat {}/00000.tar {}/nothing || true"])
def test_locations(folder: Path, location: str) -> None:
    source = opened(location.format(folder, folder))
    found = len(list(source.samples())) if isinstance(source, StreamDataset) else len(source)
    assert found == (10 if location.startswith("pipe") else SAMPLES)


def test_index_says_samples_offsets_and_digests(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    assert index["samples"] == SAMPLES and [shard["samples"] for shard in index["shards"]] == [10, 10, 3]
    for shard in index["shards"]:
        assert shard["digest"] == file_digest(folder / shard["name"])
        data = (folder / shard["name"]).read_bytes()
        first = tarfile.TarInfo.frombuf(data[shard["offsets"][1] :][:512], "utf-8", "strict")
        assert first.name.startswith(f"{10 * int(shard['name'][:5]) + 1:05d}.")


def test_same_samples_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_shard(tmp_path / "again.tar", samples(0, 10))
    assert again.shard.digest == file_digest(folder / "00000.tar")


def order(
    source, batch: int, processes: int, workers: int = 0, micro: int | None = None, first: int = 0
) -> list[float]:
    steps = 120 // batch
    found: dict[int, float] = {}
    for rank in range(processes):
        sharding = BatchSharding(batch, micro or batch // processes, rank, processes)
        for item in train_batches(
            shuffle(source), sharding, first_step=first, last_step=steps, seed=5, workers=workers
        ):
            found |= dict(zip(item.positions, item.columns["latent"][:, 0, 0].tolist(), strict=True))
    assert sorted(found) == list(range(first * batch, steps * batch))
    return [found[position] for position in sorted(found)]


def test_order_depends_on_the_seed_alone(folder: Path) -> None:
    source = opened(folder)
    reference = order(source, 12, 1)
    assert order(source, 24, 2) == order(source, 12, 4, micro=1) == order(source, 12, 1, workers=2) == reference
    assert order(source, 12, 2, first=7) == reference[84:]


def test_every_epoch_holds_every_row_once_in_another_order(folder: Path) -> None:
    rows = order(opened(folder), 12, 1)
    first, second = rows[:SAMPLES], rows[SAMPLES : 2 * SAMPLES]
    assert sorted(first) == sorted(second) == list(range(SAMPLES)) and first != second and first != sorted(first)


def test_streams_are_shuffled_and_shared_alike(folder: Path) -> None:
    """Six times as long as what is read of it: a pipe is read once."""
    location = f"pipe:cat {6 * f'{folder}/*.tar '}"
    reference = order(opened(location), 12, 1)
    assert order(opened(location), 12, 3) == reference != sorted(reference)


def test_a_batch_must_divide_among_the_processes() -> None:
    with pytest.raises(UsageError, match="does not divide"):
        BatchSharding(10, 2, 0, 4)


def stream_bytes(count: int) -> bytes:
    buffer = io.BytesIO()
    write_stream(buffer, "latents", {"shape": [2, 3, 3], "class_names": ["a"]}, Provenance(seed=1), samples(0, count))
    return buffer.getvalue()


def test_a_stream_describes_itself_and_plain_readers_skip_that(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(stream_bytes(4))
    source = opened(tmp_path / "s.tar")
    assert source.artifact.config == {"shape": [2, 3, 3], "class_names": ["a"]}
    assert source.artifact.provenance.seed == 1 and isinstance(source, IndexedTars) and len(source) == 4
    piped = opened(f"pipe:cat {tmp_path}/s.tar")
    assert isinstance(piped, StreamDataset) and len(list(piped.samples())) == 4
    assert piped.artifact.config == source.artifact.config
    plain = wds.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False, empty_check=False)
    assert [row["__key__"] for row in plain] == [f"{i:05d}" for i in range(4)]


def test_a_stream_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = stream_bytes(6)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        places = [member.offset for member in tar][3:]
    assert len(places) > 5
    for place in [*places, places[2] + 100, places[3] + 600, places[4] + 1000]:
        (tmp_path / "cut.tar").write_bytes(whole[:place])
        with pytest.raises(InputError, match="ended early|truncated"):
            opened(tmp_path / "cut.tar")
        with pytest.raises(InputError, match="ended early|truncated"):
            list(opened(f"pipe:cat {tmp_path}/cut.tar").samples())  # type: ignore[union-attr]


def test_a_stream_that_cannot_be_read_again_must_be_long_enough(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(stream_bytes(10))
    source = opened(f"pipe:cat {tmp_path}/s.tar")
    batches = train_batches(shuffle(source), BatchSharding(4, 4), first_step=0, last_step=5, seed=0, workers=0)
    with pytest.raises(InputError, match="ended in step 3 of 5, which need 20 samples"):
        list(batches)


def spoil(folder: Path, change: Callable[[bytearray], bytes | bytearray]) -> None:
    path = folder / "00001.tar"
    path.write_bytes(change(bytearray(path.read_bytes())))


def test_truncated_shard_is_named(folder: Path) -> None:
    spoil(folder, lambda data: data[:5000])
    with pytest.raises(InputError, match=r"00001\.tar is truncated"):
        opened(folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_loader_threads_are_as_short_as_ours(folder: Path, workers: int) -> None:
    spoil(folder, lambda data: data[:512] + b"x" * 512 + data[1024:])
    (folder / "index.json").unlink()
    batches = train_batches(
        shuffle(opened(folder)), BatchSharding(SAMPLES, SAMPLES), first_step=0, last_step=1, seed=0, workers=workers
    )
    with pytest.raises(InputError, match=r"00001\.tar: sample \S+: cls is no class index") as error:
        list(batches)
    assert "Traceback" not in str(error.value)


def test_an_unfinished_folder_is_no_input(folder: Path) -> None:
    (folder / "index.json").unlink()
    (folder / ".progress").mkdir()
    with pytest.raises(InputError, match="is not finished"):
        opened(folder)


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "00002.tar").unlink()
    with pytest.raises(InputError, match=r"00002\.tar.*is missing"):
        opened(folder)


def test_broken_header_is_named(folder: Path) -> None:
    def change(data: bytearray) -> bytearray:
        data[0:20] = b"x" * 20
        return data

    spoil(folder, change)
    with pytest.raises(InputError, match=r"00001\.tar: .*broken tar member"):
        opened(folder)[10]


@pytest.mark.parametrize("member", [b"\x93NUMPY garbage", b"", np.array([object()], dtype=object).dumps()])
def test_broken_member_is_named_and_never_unpickled(tmp_path: Path, member: bytes) -> None:
    write_shard(tmp_path / "d" / "0.tar", [{"__key__": "bad1", "latent.npy": member, "cls": b"1"}])
    with pytest.raises(InputError, match=r"0\.tar: sample bad1: latent.npy"):
        opened(tmp_path / "d")[0]


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    sample = {"__key__": "k", "__url__": "u", "latent.npy": buffer.getvalue()}
    with pytest.raises(InputError, match="sample k: latent.npy"):
        array_member(sample, "latent.npy")


@pytest.mark.parametrize("label", [b"x", b"-1", b"1.5"])
def test_labels_must_be_class_indices(label: bytes) -> None:
    with pytest.raises(InputError, match="sample k: cls"):
        label_member({"__key__": "k", "__url__": "u", "cls": label})


def test_images_are_cut_to_the_centre_square() -> None:
    image = torch.zeros(3, 20, 60, dtype=torch.uint8)
    image[:, :, 20:40] = 255
    assert decode_image(png_bytes(image), 20, "x").float().mean() == 255
    assert decode_image(png_bytes(image), None, "x").shape == (3, 20, 60)
    assert decode_image(png_bytes(image.repeat_interleave(8, 1).repeat_interleave(8, 2)), 20, "x").float().mean() > 250


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a/bad\.png does not decode"):
        open_images(str(tmp_path), 32)[0]


def test_image_folders_name_their_classes(tmp_path: Path) -> None:
    for name, value in (("dog", 9), ("cat", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png_bytes(torch.full((3, 8, 8), value, dtype=torch.uint8)))
    source = open_images(str(tmp_path), 8)
    assert source.artifact.config["class_names"] == ["cat", "dog"]
    assert [(int(source[i]["image"].max()), source[i]["label"]) for i in range(2)] == [(5, 0), (9, 1)]


def test_digits_are_split_by_class_without_overlap() -> None:
    parts = {part: open_images(f"digits{part}", 32) for part in ("", ":train", ":heldout")}
    assert {part: len(source) for part, source in parts.items()} == {"": 1797, ":train": 1500, ":heldout": 297}
    pixels = [{bytes(source[i]["image"].numpy()) for i in range(len(source))} for source in parts.values()]
    assert not pixels[1] & pixels[2] and pixels[1] | pixels[2] == pixels[0]
    counts = torch.bincount(torch.tensor(parts[":heldout"].labels))
    assert counts.min() >= 28 and counts.max() <= 31
    with pytest.raises(InputError, match="digits:test is unknown"):
        open_images("digits:test", 32)


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_of_an_output_are_cut_at_the_same_samples(folder: Path, indexed: bool) -> None:
    source = opened(folder if indexed else f"pipe:cat {folder}/*.tar")
    parts = [(shard, batch.positions) for shard, batch in inference_batches(source, 8, 5, lambda shard: shard != 1)]
    assert parts == [(0, [0, 1, 2, 3, 4]), (0, [5, 6, 7]), (2, [16, 17, 18, 19, 20]), (2, [21, 22])]
