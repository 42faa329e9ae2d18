"""Damage done for real: broken samples, rotten shards, lost bytes; refused, or skipped and reported."""

import gzip
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import webdataset as wds
from conftest import failed, several
from PIL import Image
from safetensors.torch import load_file

from mfkit.config.settings import Reading
from mfkit.data.codecs import label_member, png_bytes
from mfkit.data.dataset import IndexedTars
from mfkit.data.shards import open_shards
from mfkit.data.stream import StreamDataset
from mfkit.data.verify import verify
from mfkit.data.writer import write_shard
from mfkit.errors import InputError


def spoil(path: Path, place: int, data: bytes = b"?") -> None:
    """Overwrites bytes of a file; a negative place counts from its end."""
    content = bytearray(path.read_bytes())
    place %= len(content)
    assert content[place : place + len(data)] != data
    content[place : place + len(data)] = data
    path.write_bytes(content)


def label_place(shard: Path, number: int) -> int:
    """Where the label of a sample begins in a tar: after the header of the cls member."""
    content = shard.read_bytes()
    place = -1
    for _ in range(number + 1):
        place = content.index(b".cls\0", place + 1)
    return place // 512 * 512 + 512


@pytest.fixture
def latents(chain: Path, tmp_path: Path) -> Path:
    """Shards without an index, as others write them."""
    shutil.copytree(
        chain / "latents", tmp_path / "latents", ignore=shutil.ignore_patterns("index.json", "00002.tar", "00003.tar")
    )
    return tmp_path / "latents"


TRAIN = "train-teacher latents --classes 10 --preset digits -o t.safetensors --steps 13 --batch-size 64 --log-every 1"


def test_a_broken_sample_is_an_error_or_skipped(latents: Path, tmp_path: Path, mfkit, caplog) -> None:
    """832 rows are more than an epoch of 800, so that the broken ones are met."""
    for number in (3, 200):
        spoil(latents / "00001.tar", label_place(latents / "00001.tar", number), b"x")
    failed(mfkit(TRAIN), 3, "00001.tar: sample 000000", "cls is no class index")
    skipped = mfkit(TRAIN + " --on-error skip --restart")
    assert skipped.code == 0 and "skipped 2 unreadable samples" in caplog.text
    assert caplog.text.count("cls is no class index") == 2


def test_the_first_sample_may_be_the_broken_one(latents: Path, mfkit, caplog) -> None:
    spoil(latents / "00000.tar", label_place(latents / "00000.tar", 0), b"x")
    assert mfkit(TRAIN + " --on-error skip").code == 0 and "skipped 1 unreadable samples" in caplog.text


def test_more_than_one_in_a_hundred_is_an_error_anyway(latents: Path, mfkit) -> None:
    for number in range(9):
        spoil(latents / "00001.tar", label_place(latents / "00001.tar", number), b"x")
    failed(mfkit(TRAIN + " --on-error skip"), 3, "9 of 800 samples cannot be read, more than 1%", "cls is no class")


def test_what_is_skipped_does_not_depend_on_threads_or_micro_batches(latents: Path, tmp_path: Path, mfkit) -> None:
    spoil(latents / "00001.tar", label_place(latents / "00001.tar", 3), b"x")
    for name, options in (("a", "--workers 0"), ("b", "--workers 3")):
        assert mfkit(TRAIN.replace("-o t", f"-o {name}") + f" --on-error skip {options}").code == 0
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_encoding_skips_broken_images(chain: Path, tmp_path: Path, mfkit, caplog) -> None:
    make_images(tmp_path, 120, [11])
    command = f"encode images --rae {chain}/rae.safetensors --preset digits --shard-size 50 -o latents"
    failed(mfkit(command), 3, "images/1/011.png does not decode")
    done = mfkit(command + " --on-error skip --overwrite")
    assert done.code == 0 and "skipped 1 unreadable samples" in caplog.text and "images/1/011.png" in caplog.text
    described = json.loads(mfkit("inspect latents").out)
    assert described["samples"] == 119 and sum(described["shards"].values()) == 119


def make_images(folder: Path, count: int, broken: list[int]) -> None:
    for number in range(count):
        (folder / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        file = folder / "images" / str(number % 2) / f"{number:03d}.png"
        file.write_bytes(png_bytes(torch.full((3, 32, 32), number % 256, dtype=torch.uint8)))
        if number in broken:
            spoil(file, 40, b"\0\0\0\0")


def test_what_processes_and_earlier_runs_skipped_counts_together(chain: Path, tmp_path: Path, mfkit) -> None:
    """Of 200 images 3 are broken: no process, and neither of two runs, meets more than 2 of them."""
    make_images(tmp_path, 200, [4, 5, 30])
    command = f"encode images --rae {chain}/rae.safetensors --preset digits --shard-size 20 --on-error skip -o latents"
    done = several(tmp_path, command, processes=2)
    told = "3 of 200 samples cannot be read"
    assert done.stderr.count(told) == 1 and [(tmp_path / f"codes{rank}").read_text() for rank in (0, 1)] == 2 * ["3\n"]
    failed(mfkit(command), 3, told)  # what is finished is kept, with what is missing from it
    (tmp_path / "latents/.progress/00000000.json").unlink()
    failed(mfkit(command), 3, told)


def test_a_stream_that_breaks_off_is_an_error_anyway(chain: Path, tmp_path: Path, mfkit, monkeypatch) -> None:
    """Under --on-error skip too: nothing says how much is missing."""
    image = png_bytes(torch.zeros(3, 32, 32).byte())
    write_shard(tmp_path / "x.tar", [{"__key__": f"{i}", "png": image, "cls": b"1"} for i in range(200)])
    for source, command in (
        (chain / "latents/00000.tar", "train-teacher - --classes 10 -o c.safetensors --steps 5 --batch-size 100"),
        (tmp_path / "x.tar", f"encode - --rae {chain}/rae.safetensors -o latents"),
    ):
        (tmp_path / "cut").write_bytes(source.read_bytes()[:-20001])
        with (tmp_path / "cut").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            failed(mfkit(f"{command} --preset digits --on-error skip"), 3, "- is damaged or truncated")
    assert not (tmp_path / "latents/index.json").exists() and not (tmp_path / "c.safetensors").exists()


def tars(location: Path) -> IndexedTars:
    found = open_shards(f"{location}/*.tar", ("latents",), label_alone, Reading("skip"))
    assert isinstance(found, IndexedTars)
    return found


def stream(location: str) -> StreamDataset:
    """Compressed, so that it is read from its beginning, again and again."""
    found = open_shards(location, ("latents",), label_alone, Reading("skip"))
    assert isinstance(found, StreamDataset) and found.repeatable
    return found


def label_alone(sample: dict) -> dict:
    return {"label": label_member(sample)}


def test_what_is_skipped_of_a_stream_counts_once(tmp_path: Path) -> None:
    """However often the shards are read: 17 of 4,000 are few."""
    with wds.TarWriter(str(tmp_path / "x.tar.gz"), encoder=False) as writer:
        for i in range(4000):
            writer.write({"__key__": f"{i}", "cls": b"x" if i % 250 == 5 else b"1"})
    source = stream(f"{tmp_path}/x.tar.gz")
    assert [len(list(source.samples())) for _ in range(3)] == 3 * [3984] and source.skips.count() == 16


def test_verify_knows_every_image(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain / "samples", tmp_path / "samples")
    for place in ("extra.png", "3/extra.png"):
        shutil.copy(next((chain / "samples").rglob("*.png")), tmp_path / "samples" / place)
    assert verify(tmp_path / "samples")["damaged"] == 2
    for path in (tmp_path / "samples").rglob("*.png"):
        path.unlink()
    assert verify(tmp_path / "samples")["damaged"] == 40


def test_the_rest_of_a_rotten_shard_is_skipped(tmp_path: Path) -> None:
    """Without an index, read by random access and as a stream; of 300 shards one, so that little is lost."""
    for shard in range(300):
        write_shard(tmp_path / f"{shard:03d}.tar", [{"__key__": f"{i}", "cls": b"%d" % i} for i in range(4)])
    spoil(tmp_path / "007.tar", 2 * 1024 + 150, b"damage")
    assert len(tars(tmp_path)) == 299 * 4 + 1 and tars(tmp_path).skips.count() == 3
    for path in tmp_path.glob("*.tar"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    assert len(list(stream(f"{tmp_path}/{{000..299}}.tar.gz").samples())) == 299 * 4 + 1
    for shard in range(20, 30):
        spoil(tmp_path / f"{shard:03d}.tar", 2 * 1024 + 150, b"damage")
        (tmp_path / f"{shard:03d}.tar.gz").write_bytes(gzip.compress((tmp_path / f"{shard:03d}.tar").read_bytes(), 1))
    with pytest.raises(InputError, match="more than 1%; first: .*007.tar is damaged or truncated"):
        tars(tmp_path)
    with pytest.raises(InputError, match="more than 1%"):
        list(stream(f"{tmp_path}/{{000..299}}.tar.gz").samples())


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "made", ["latents", "traj", "samples", "rae.safetensors", "teacher.safetensors", "mft.safetensors"]
)
def test_verify_finds_any_changed_byte(made: str, chain: Path, tmp_path: Path, mfkit) -> None:
    """A bit anywhere in any of the files; but in that of its time, which nothing depends on."""
    (shutil.copytree if (chain / made).is_dir() else shutil.copy)(chain / made, tmp_path / made)
    assert mfkit(f"verify {made}").code == 0
    chance = random.Random(0)
    files = files_of(tmp_path / made) if (tmp_path / made).is_dir() else [tmp_path / made]
    files = [file for file in files if file.name != ".time.json"]
    for file in chance.sample(files, min(3, len(files))):
        before = file.read_bytes()
        for _ in range(4):
            place = chance.randrange(len(before))
            file.write_bytes(before[:place] + bytes([before[place] ^ 16]) + before[place + 1 :])
            result = mfkit(f"verify {made}")
            assert result.code == 3 and result.err.count("\n") == 1, (file, place)
        file.write_bytes(before[: len(before) // 2])
        assert mfkit(f"verify {made}").code == 3
        file.write_bytes(before)
    if (tmp_path / made).is_dir():
        files[0].unlink()
        assert mfkit(f"verify {made}").code != 0


def test_verify_takes_files_of_others(chain: Path, tmp_path: Path, mfkit) -> None:
    write_shard(tmp_path / "a.tar", [{"__key__": "k", "png": png_bytes(torch.zeros(3, 8, 8).byte()), "cls": b"1"}])
    assert json.loads(mfkit("verify a.tar").out)["checked"] == 2
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    failed_at = mfkit("verify b.tar")
    assert failed_at.code == 3 and "b.tar is damaged or truncated" in failed_at.err
    assert mfkit(f"sample {chain}/mft.safetensors -n 3 -o x.npz").code == 0
    assert mfkit("verify x.npz").code == 0
    spoil(tmp_path / "x.npz", 3000, b"\1\2\3")
    assert mfkit("verify x.npz").code == 3


def test_an_image_that_is_no_image_of_ours_starts_nothing(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript; here it is no image, whatever its name."""
    from mfkit.data.codecs import decode_image

    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps", "EPS")
    with pytest.raises(InputError, match="no PNG, JPEG or WebP image"):
        decode_image((tmp_path / "x.eps").read_bytes(), 4, "x.png")
