"""Every reader against garbage: real files with bytes changed, JSON of any shape. A file is read, or refused by a word.

MFKIT_FUZZ is the number of inputs for each reader, 1,000 by default; `MFKIT_FUZZ=10000 pytest tests/test_fuzz.py` takes
some minutes.
"""

import copy
import io
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mfkit.artifacts.artifact import FORMAT, Provenance, metadata, open_artifact, parse_description
from mfkit.artifacts.inspect import command_chain, inspect
from mfkit.artifacts.safetensors_files import is_intact, read_tensors, write_tensors
from mfkit.data.codecs import array_bytes, array_member, decode_image, label_member, png_bytes
from mfkit.data.index import FolderIndex, write_index
from mfkit.data.latents import open_latents
from mfkit.data.npz import NpzImages
from mfkit.data.skip import SkipPolicy
from mfkit.data.stream import StreamDataset
from mfkit.data.verify import verify
from mfkit.data.writer import write_shard, write_stream
from mfkit.errors import InputError, MfkitError
from mfkit.evaluation.moments import read_statistics
from mfkit.formats.hub import read_weights_file
from mfkit.loading import load
from mfkit.models.dit import DIT_DH, DiTConfig, VelocityDiT
from mfkit.models.files import save_generator
from mfkit.training.log import read as read_log

INPUTS = int(os.environ.get("MFKIT_FUZZ", "1000"))
SLOWEST, MOST_MEMORY = 5.0, 1 << 29
"""Seconds for one input, bytes for all."""
SIZES = DiTConfig(
    channels=4, side=2, num_classes=3, width=8, depth=1, heads=2, head_width=16, head_depth=1, head_heads=2
)


def mutated(original: bytes, chance: random.Random) -> bytes:
    """The bytes with a few things done to them that happen to files, or are done to them."""
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        place = chance.randrange(len(data) + 1) if chance.random() < 0.5 else chance.randrange(min(len(data), 600) + 1)
        length = chance.choice((1, 1, 2, 4, 8, 100, 512))
        match chance.randrange(7):
            case 0:  # a bit
                if place < len(data):
                    data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place : place + length] = chance.randbytes(length)
            case 2:
                del data[place:]
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[: length * chance.randrange(1, 5)]
            case 5:
                data[place : place + length] = bytes([chance.choice((0, 32, 48, 55, 57, 127, 128, 255))]) * length
            case 6:  # a number of the text, made another
                digits = [i for i, byte in enumerate(data[:4000]) if 48 <= byte <= 57]
                if digits:
                    at = chance.choice(digits)
                    data[at : at + 1] = chance.choice((b"-1", b"999999999", b"1e400", b"0", b"9" * 30, b"null"))
    return bytes(data)


def hold(cases: Iterator[Callable[[], object]]) -> None:
    """Each case ends in time, in bounded memory, and with nothing but an error of ours."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for case in cases:
        began = time.monotonic()
        try:
            case()
        except MfkitError as error:
            refused += 1
            assert "\n" not in str(error)
        assert time.monotonic() - began < SLOWEST
    assert refused > INPUTS / 20  # the garbage is garbage
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


def of_file(path: Path, content: bytes, read: Callable[[Path], object], count: int = INPUTS) -> None:
    """Mutations of a file."""
    chance = random.Random(path.name)

    def cases() -> Iterator[Callable[[], object]]:
        for _ in range(count):
            path.write_bytes(mutated(content, chance))
            yield lambda: read(path)

    hold(cases())


def rows(count: int = 4) -> list[dict[str, Any]]:
    values = np.random.default_rng(0).standard_normal((count, 3, 2, 2)).astype(np.float16)
    return [{"__key__": f"{i:04d}", "latent.npy": array_bytes(values[i]), "cls": str(i).encode()} for i in range(count)]


def decode(sample: dict[str, Any]) -> dict[str, Any]:
    return {"latent": array_member(sample, "latent.npy"), "label": label_member(sample)}


def read_all(path: Path) -> None:
    """By random access, as a stream, and as a check."""
    errors = []
    for read in (read_in_place, read_as_stream, verify):
        try:
            read(path)
        except MfkitError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_in_place(path: Path) -> None:
    dataset = open_latents("latents", str(path), classes=4).dataset
    assert not isinstance(dataset, StreamDataset)
    for number in range(len(dataset)):
        assert dataset[number]["label"] >= 0
    dataset.read(range(len(dataset)))


def read_as_stream(path: Path) -> None:
    stream = StreamDataset(str(path), [str(path)], decode, "latents", SkipPolicy())
    for sample in stream.samples():
        assert sample["label"] >= 0


def test_tars(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", rows())
    of_file(tmp_path / "x.tar", (tmp_path / "x.tar").read_bytes(), read_all)


def test_streams(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write_stream(buffer, "latents", {"shape": [3, 2, 2], "class_names": list("abcd")}, Provenance(), rows())
    of_file(tmp_path / "s.tar", buffer.getvalue(), read_all)


@pytest.mark.parametrize("part", ["0.tar", "index.json"])
def test_shard_folders(part: str, tmp_path: Path) -> None:
    record = write_shard(tmp_path / "0.tar", rows())
    index = FolderIndex(samples=4, shards=[record.shard], arrays=record.arrays)
    write_index(tmp_path, "latents", {"shape": [3, 2, 2], "class_names": list("abcd")}, Provenance(), index)

    def read(path: Path) -> None:
        inspect(open_artifact(tmp_path), tensors=False)
        found = verify(tmp_path)
        read_in_place(tmp_path)
        if found["damaged"]:
            raise InputError(found["first"][0])

    of_file(tmp_path / part, (tmp_path / part).read_bytes(), read)


def test_arrays_and_labels() -> None:
    content, chance = array_bytes(np.ones((2, 3), np.float32)), random.Random(1)

    def cases() -> Iterator[Callable[[], object]]:
        for _ in range(INPUTS):
            sample = {"__key__": "k", "__url__": "u", "x.npy": mutated(content, chance), "cls": mutated(b"12", chance)}
            yield partial(array_member, sample, "x.npy")
            yield partial(label_member, sample)

    hold(cases())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images(kind: str) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    content, chance = buffer.getvalue(), random.Random(kind)
    hold(partial(decode_image, mutated(content, chance), 8, "x") for _ in range(INPUTS))


def test_archives_of_images_and_statistics(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(
        path, arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.arange(2), mu=np.zeros(3), sigma=np.eye(3),
        conditions=np.array(json.dumps({"class_names": ["a"]})),
    )  # fmt: skip
    of_file(path, path.read_bytes(), lambda file: (NpzImages(file, 4)[1], read_statistics(file), verify(file)))


def test_networks(tmp_path: Path) -> None:
    path, description = tmp_path / "t.safetensors", {"time_shift": 2.0, "class_names": list("abc")}
    save_generator(path, VelocityDiT(SIZES), DIT_DH.name, description, Provenance())
    content = path.read_bytes()
    of_file(path, content, lambda file: (inspect(open_artifact(file), tensors=True), is_intact(file)))
    of_file(path, content, load, INPUTS // 5)


def test_tensors(tmp_path: Path) -> None:
    for writer, name in ((save, "theirs"), (None, "ours")):
        path = tmp_path / f"{name}.safetensors"
        tensors = {"a": torch.ones(3, 2), "b": torch.zeros(2, dtype=torch.float16)}
        if writer:
            path.write_bytes(writer(tensors, metadata=metadata("rae", {}, Provenance())))
        else:
            write_tensors(path, tensors, metadata("rae", {}, Provenance()))
        of_file(path, path.read_bytes(), lambda file: (read_tensors(file), is_intact(file)), INPUTS // 2)


def test_pt_files(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(3)}, "step": 3}, tmp_path / "x.pt")
    of_file(tmp_path / "x.pt", (tmp_path / "x.pt").read_bytes(), read_weights_file)


def test_logs(tmp_path: Path) -> None:
    names = ("step", "loss", "mse", "grad_norm", "learning_rate", "samples_per_second")
    line = json.dumps(dict.fromkeys(names, 1.5)) + "\n"
    of_file(tmp_path / "x.log.jsonl", 2 * line.encode(), read_log)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["pipe:id", "../..", "/etc/passwd", "", "a/b", "images", "latents", 2**63, -1, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
ENTRY = {"path": "x", "kind": "rae", "digest": "sha256:1"}
RECORD = {"version": "1", "command": "mfkit", "libraries": {"torch": "2"}, "seed": 1, "inputs": {"rae": ENTRY}}
GENERATOR = {
    "network": {"architecture": DIT_DH.name, **vars(SIZES)}, "time_shift": 1.5, "class_names": ["a", "b", "c"],
    "preset": "digits",
}  # fmt: skip
RAE = {
    "network": dict(
        encoder_name="vit_tiny_patch16_224", encoder={"patch_size": 8}, encoder_size=8, encoder_mean=[0.5, 0.5, 0.5],
        image_size=8, channels=4, side=1, decoder_width=4, decoder_depth=1, decoder_heads=1, decoder_hidden=4,
    )
}  # fmt: skip
DOCUMENTS = [
    {"format": FORMAT, "kind": kind, "config": config, "provenance": {**RECORD, "history": {"sha256:1": RECORD}}}
    for kind, config in (
        ("teacher", GENERATOR), ("rae", RAE), ("latents", {"shape": [3, 2, 2], "class_names": ["a"]}),
        ("checkpoint", {"step": 3, "settings": {}}),
    )
]  # fmt: skip


def places(document: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for name, value in items:
        yield from places(value, (*at, name))


@settings(max_examples=INPUTS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(DOCUMENTS), st.randoms(use_true_random=False), ANYTHING)
def test_descriptions(
    tmp_path_factory: pytest.TempPathFactory, document: Any, chance: random.Random, value: Any
) -> None:
    """Anything in place of any part of what a file says of itself, as an index and in a safetensors file."""
    folder = tmp_path_factory.getbasetemp() / "descriptions"
    folder.mkdir(exist_ok=True)
    document = copy.deepcopy(document)
    place = chance.choice(list(places(document)))
    holder: Any = document
    for name in place[:-1]:
        holder = holder[name]
    if place:
        holder[place[-1]] = value
    else:
        document = value
    try:
        artifact = parse_description(folder / "x", document, "x", content_digest="sha256:0")
        command_chain(artifact)
        artifact.ancestors("rae")
        artifact.reference("rae")
        artifact.input_path("rae", "--rae")
    except MfkitError:
        pass
    for file, text in ((folder / "index.json", json.dumps(document)), (folder / "x.safetensors", None)):
        if text is not None:
            file.write_text(text)
        elif isinstance(document, dict):
            texts = {f"mfkit.{name}": json.dumps(part) for name, part in document.items()}
            texts["mfkit.kind"] = str(document.get("kind"))
            write_tensors(file, {"a": torch.ones(2)}, texts)
        for read in (lambda path: inspect(open_artifact(path), tensors=False), load):
            try:
                read(folder if text is not None else file)
            except MfkitError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"\\ud800"', "\x00", "NaN"])
def test_json_of_strange_shapes(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(MfkitError, match="damaged"):
        open_artifact(tmp_path)
    header = text.encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(MfkitError):
        open_artifact(tmp_path / "x.safetensors")
    (tmp_path / "x.log.jsonl").write_text(text)
    with pytest.raises(MfkitError, match="not a line"):
        read_log(tmp_path / "x.log.jsonl")


def test_the_fuzzed_files_are_read_when_nothing_is_done_to_them(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", rows())
    read_all(tmp_path / "x.tar")
    assert parse_description(tmp_path, DOCUMENTS[0], "x").kind == "teacher"
    decode_image(png_bytes(torch.zeros(3, 24, 20).byte()), 8, "x")
