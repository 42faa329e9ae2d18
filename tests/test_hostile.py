"""Files made to harm: nothing is run, nothing is written outside the output, memory stays bounded, one line tells."""

import io
import json
import os
import pickle
import resource
import shlex
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import failed
from safetensors.torch import load_file

from mfkit.artifacts.safetensors_files import read_header, write_tensors
from mfkit.autoencoders.rae_decoder import DecoderConfig, new_decoder
from mfkit.data.codecs import array_bytes, png_bytes
from mfkit.data.images import folder_names

MOST_MEMORY = 1 << 29


class Bomb:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch owned",))


def latent() -> bytes:
    return array_bytes(np.zeros((8, 4, 4), np.float16))


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member, data in members:
            entry = tarfile.TarInfo(member) if isinstance(member, str) else member
            if entry.isreg():
                entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def outside(tmp_path: Path) -> set[str]:
    """What lies in the folder and around it."""
    return {str(path) for path in [*tmp_path.rglob("*"), *tmp_path.parent.glob("*")]}


TRAIN = "train-teacher x.tar --preset digits --classes 10 -o t.safetensors --steps 1 --batch-size 2"


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


def test_members_that_are_no_files_are_passed_over(tmp_path: Path, mfkit) -> None:
    good = [("a.latent.npy", latent()), ("a.cls", b"1"), ("b.latent.npy", latent()), ("b.cls", b"2")]
    bad = [
        special("c.latent.npy", tarfile.SYMTYPE, "/etc/passwd"), special("c.cls", tarfile.LNKTYPE, "a.cls"),
        special("d.cls", tarfile.CHRTYPE), special("e.cls", tarfile.FIFOTYPE), special("../f", tarfile.DIRTYPE),
    ]  # fmt: skip
    tar_of(tmp_path / "x.tar", [*good, *((entry, b"") for entry in bad)])
    before = outside(tmp_path)
    assert mfkit(TRAIN).code == 0
    assert {Path(path).name for path in outside(tmp_path) - before} == {"t.safetensors", "t.log.jsonl"}


@pytest.mark.parametrize("name", ["/tmp/mfkit-owned", "../../owned", "a/../../../b", "\x1b]0;owned\x07", "n\udc80"])
def test_names_of_members_are_nothing_but_names(name: str, tmp_path: Path, chain: Path, mfkit) -> None:
    picture = png_bytes(torch.zeros(3, 8, 8).byte())
    tar_of(tmp_path / "x.tar", [(f"{name}.png", picture), (f"{name}.cls", b"1")])
    before = outside(tmp_path)
    assert mfkit(f"encode x.tar --rae {chain}/rae.safetensors --preset digits -o out").code == 0
    written = {Path(path).name for path in outside(tmp_path) - before}
    assert written == {"out", "00000.tar", "index.json", ".time.json"}
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        assert tar.getnames() == ["000000000.cls", "000000000.latent.npy"]
    tar_of(tmp_path / "x.tar", [(f"{name}.png", b"none"), (f"{name}.cls", b"1")])
    refused = mfkit(f"encode x.tar --rae {chain}/rae.safetensors --preset digits -o y")
    failed(refused, 3, "does not decode")
    assert refused.err[:-1].isprintable()


def sized(data: bytes, size: int) -> bytes:
    """A tar whose first member says another size, with the right checksum."""
    header = bytearray(data[:512])
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("size", [1 << 33, 1 << 62])
def test_absurd_sizes(kind: bytes, size: int, tmp_path: Path, mfkit) -> None:
    tar_of(tmp_path / "x.tar", [("a.latent.npy", latent()), ("a.cls", b"1")])
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[156:157] = kind
    (tmp_path / "x.tar").write_bytes(sized(bytes(data), size))
    with (tmp_path / "x.tar").open("r+b") as file:
        file.truncate(1 << 34)  # sparse: as long as it says, but of no blocks
    for location in ("x.tar", "'pipe:cat x.tar'"):
        failed(mfkit(TRAIN.replace("x.tar", location)), 3, "x.tar")


def test_a_tar_that_unpacks_to_more_than_memory(tmp_path: Path, mfkit) -> None:
    """4 GiB of zeros in 4 MB: the member is refused by its size, before it is unpacked."""
    import gzip

    entry = tarfile.TarInfo("a.latent.npy")
    entry.size = 1 << 32
    with gzip.open(tmp_path / "x.tar", "wb", compresslevel=1) as file:
        file.write(entry.tobuf())
        for _ in range(16):
            file.write(bytes(1 << 20))
    failed(mfkit(TRAIN), 3, "too large")


@pytest.mark.parametrize("size", ["-1536", "-512", "99999999999999"])
def test_sizes_of_posix_records(size: str, tmp_path: Path, mfkit) -> None:
    """A negative one would lead back to headers that have been read, again and again."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.latent.npy", "a.cls", "b.cls"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = 3, {"size": size}
            tar.addfile(entry, io.BytesIO(b"123"))
    for location in ("x.tar", "'pipe:cat x.tar'"):
        failed(mfkit(TRAIN.replace("x.tar", location)), 3, "x.tar")


def test_chained_long_names(tmp_path: Path, mfkit) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "x.tar").write_bytes((entry.tobuf() + b"a".ljust(512, b"\0")) * 3000)
    failed(mfkit(TRAIN), 3, "x.tar is damaged")


def png_of(width: int, height: int) -> bytes:
    """A valid PNG of one colour, packed a thousand times."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes((width + 1) * min(height, 200)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (9_000, 9_000), (1, 60_000_000), (60_000, 1)])
def test_image_bombs(width: int, height: int, tmp_path: Path, chain: Path, mfkit) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png_of(width, height))
    command = f"encode images --rae {chain}/rae.safetensors --preset digits -o out"
    if (width, height) == (60_000, 1):
        assert mfkit(command).code == 0  # cut to a square without harm
    else:
        failed(mfkit(command), 3, "images/a.png is too")


def npy_header(shape: tuple[int, ...], kind: str) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize("header", [npy_header((1 << 40,), "<f2"), npy_header((1 << 31, 1 << 31), "<f4"),
                                    npy_header((0,), "|O"), npy_header((8, 4, 4), "<U9")])  # fmt: skip
def test_arrays_that_say_more_than_they_hold(header: bytes, tmp_path: Path, mfkit) -> None:
    tar_of(tmp_path / "x.tar", [("a.latent.npy", header + bytes(64)), ("a.cls", b"1")])
    failed(mfkit(TRAIN), 3, "x.tar: sample a: latent.npy is no array")


def test_an_archive_that_unpacks_to_more_than_memory(tmp_path: Path, chain: Path, mfkit) -> None:
    """A thousand times what it is packed in; written piece by piece, so that the test stays small."""
    archive = zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("arr_0.npy", "w") as member:
        member.write(npy_header((300 * 1024, 32, 32, 3), "|u1"))
        for _ in range(900):
            member.write(bytes(1 << 20))
    assert (tmp_path / "x.npz").stat().st_size < 2_000_000
    failed(mfkit(f"fid x.npz --reference digits --features {chain}/rae.safetensors"), 3, "x.npz cannot be read")


@pytest.mark.parametrize("labels", [[0, -1], [0, 2]])
def test_labels_of_an_archive_are_of_its_classes(labels: list[int], tmp_path: Path, chain: Path, mfkit) -> None:
    conditions = np.array(json.dumps({"class_names": ["a", "b"]}))
    np.savez(
        tmp_path / "x.npz", arr_0=np.zeros((2, 32, 32, 3), np.uint8), arr_1=np.array(labels), conditions=conditions
    )
    failed(mfkit(f"encode x.npz --rae {chain}/rae.safetensors --preset digits -o out"), 3, "outside its 2 classes")


def test_pickles_are_never_run(tmp_path: Path, chain: Path, mfkit) -> None:
    bomb = pickle.dumps(Bomb())
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb()], dtype=object), allow_pickle=True)
    for suffix in ("pyd", "pickle", "pth", "latent.npy"):
        data = bomb if suffix != "latent.npy" else objects.getvalue()
        tar_of(tmp_path / "x.tar", [(f"a.{suffix}", data), ("a.cls", b"1")])
        for location in ("x.tar", "'pipe:cat x.tar'"):
            failed(mfkit(TRAIN.replace("x.tar", location)), 3, "sample a: ")
    np.savez(tmp_path / "x.npz", arr_0=np.array([Bomb()], dtype=object))
    failed(mfkit(f"fid x.npz --reference digits --features {chain}/rae.safetensors"), 3, "x.npz cannot be read")
    torch.save({"model": Bomb()}, tmp_path / "x.pt")
    failed(mfkit("import x.pt -o y.safetensors"), 3, "nothing of it is run")
    assert not (tmp_path / "owned").exists()


def changed(path: Path, target: Path, change) -> None:
    """A copy of a file with another description."""
    texts = read_header(path).metadata
    documents = {name: json.loads(texts[f"mfkit.{name}"]) for name in ("config", "provenance")}
    change(documents["config"], documents["provenance"])
    texts |= {f"mfkit.{name}": json.dumps(document) for name, document in documents.items()}
    write_tensors(target, load_file(path), {name: text for name, text in texts.items() if name != "mfkit.digest"})


def in_network(field: str, value: Any) -> Callable[[dict, dict], None]:
    """The change of one size in the description of a network."""
    return lambda config, provenance: config["network"].update({field: value})


@pytest.mark.parametrize(
    "recorded",
    ["pipe:touch owned", "x::pipe:touch owned", "http://127.0.0.1:9/x.tar", "pipe", "-", "{a,pipe:touch owned}*"],
)
@pytest.mark.parametrize("digest", ["sha256:0", "names-sha256:0"])
def test_recorded_paths_are_no_commands(recorded: str, digest: str, tmp_path: Path, chain: Path, mfkit) -> None:
    os.mkfifo(tmp_path / "pipe")

    def change(config: dict, provenance: dict) -> None:
        provenance["inputs"]["latents"] |= {"path": recorded, "digest": digest}
        provenance["inputs"]["rae"] |= {"path": recorded, "digest": digest}

    changed(chain / "teacher.safetensors", tmp_path / "t.safetensors", change)
    assert mfkit("distill --teacher t.safetensors --steps 1 --batch-size 4").code == 3
    assert mfkit("sample t.safetensors -n 1 -o x").code == 3
    assert not (tmp_path / "owned").exists()


def test_names_of_files_are_no_commands(tmp_path: Path, mfkit) -> None:
    tar_of(tmp_path / "pipe:touch owned; cat a.tar", [("a.latent.npy", latent()), ("a.cls", b"1")])
    (tmp_path / "pipe:touch owned; cat a.tar").rename(tmp_path / "pipe:touch owned #.tar")
    for location in (".", "'*.tar'"):
        assert mfkit(TRAIN.replace("x.tar", location) + " --overwrite").code == 0
    assert not (tmp_path / "owned").exists()


def test_pipes_are_for_users_and_can_be_kept_off(tmp_path: Path, mfkit, monkeypatch) -> None:
    tar_of(tmp_path / "x.tar", [("a.latent.npy", latent()), ("a.cls", b"1")])
    command = TRAIN.replace("x.tar", "'pipe:touch opened; cat x.tar'").replace("--batch-size 2", "--batch-size 1")
    with monkeypatch.context() as patch:
        patch.setenv("WDS_SECURE", "1")
        failed(mfkit(command), 2, "WDS_SECURE is set")
    assert not (tmp_path / "opened").exists()
    assert mfkit(command).code == 0 and (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", {"checkpoint_path": "owned.pth"}), ("encoder", {"pretrained": True}),
        ("encoder_name", "hf-hub:someone/something"), ("encoder_size", 10**9), ("encoder_size", 2048),
        ("side", 10**6), ("channels", -4),
        ("decoder_depth", 10**7), ("decoder_width", 2**31), ("image_size", 0), ("decoder_heads", 1.5),
    ],
)  # fmt: skip
def test_networks_that_fetch_or_fill_memory(field: str, value: Any, tmp_path: Path, chain: Path, mfkit) -> None:
    changed(chain / "rae.safetensors", tmp_path / "rae.safetensors", in_network(field, value))
    failed(mfkit("encode digits:heldout --rae rae.safetensors --preset digits -o out"), 3, "rae.safetensors")


@pytest.mark.parametrize(
    ("field", "value"), [("width", 10**9), ("side", 10**9), ("depth", 10**9), ("num_classes", 10**12)]
)
def test_generators_that_fill_memory(field: str, value: int, tmp_path: Path, chain: Path, mfkit) -> None:
    changed(chain / "mft.safetensors", tmp_path / "s.safetensors", in_network(field, value))
    failed(mfkit(f"sample s.safetensors --rae {chain}/rae.safetensors -n 1 -o x"), 3, "s.safetensors")


@pytest.mark.parametrize("name", ["../../owned", "/owned", "", ".", "..", ".hidden", "a/b", "\x1b[2J", "a\0b", " "])
def test_classes_are_no_paths(name: str, tmp_path: Path, chain: Path, mfkit) -> None:
    def change(config: dict, provenance: dict) -> None:
        config["class_names"] = sorted([name, *(f"{label}" for label in range(1, 10))])

    assert folder_names(sorted([name, "b"])) == ["0", "1"]
    changed(chain / "mft.safetensors", tmp_path / "s.safetensors", change)
    before = outside(tmp_path)
    assert mfkit(f"sample s.safetensors --rae {chain}/rae.safetensors -n 10 -o drawn").code == 0
    made = outside(tmp_path) - before
    assert all(path.startswith(f"{tmp_path}/drawn") for path in made)
    assert {path.name for path in (tmp_path / "drawn").iterdir() if path.is_dir()} == {str(i) for i in range(10)}


def test_file_names_that_are_no_text_and_command_the_terminal(tmp_path: Path, chain: Path, mfkit) -> None:
    folder = tmp_path / "images"
    for name in (b"\xff\xfe", b"\x1b]0;owned\x07"):
        place = os.fsencode(folder) + b"/" + name
        Path(os.fsdecode(place)).mkdir(parents=True)
        Path(os.fsdecode(place + b"/a.png")).write_bytes(png_bytes(torch.zeros(3, 8, 8).byte()))
    encode = f"encode images --rae {chain}/rae.safetensors --preset digits -o"
    name = os.fsdecode(b"out\xff")
    done = mfkit(f"{encode} {name}")
    assert done.code == 0 and done.raw == b"out\xff\n"
    assert mfkit(f"inspect {name}").code == 0
    (folder / "\x1b]0;owned\x07" / "b.png").write_bytes(b"none")
    refused = mfkit(f"{encode} y")
    failed(refused, 3, "\\x1b]0;owned\\x07/b.png does not decode")
    assert refused.err[:-1].isprintable()


@pytest.mark.parametrize("written", ["mfkit $(touch owned) `touch owned` ';' touch owned '|' x '&' y '>' owned"])
def test_a_script_runs_mfkit_alone(written: str, tmp_path: Path, chain: Path, mfkit) -> None:
    changed(chain / "mft.safetensors", tmp_path / "s.safetensors", lambda _, record: record.update(command=written))
    script = mfkit("inspect s.safetensors --script")
    assert script.code == 0, script.err
    (tmp_path / "mfkit").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> said\n')
    (tmp_path / "mfkit").chmod(0o755)
    subprocess.run(["sh", "-c", script.out], check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, cwd=tmp_path)
    assert (tmp_path / "said").read_text().splitlines()[-len(shlex.split(written)) + 1 :] == shlex.split(written)[1:]
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("written", ["touch owned", "mfkit x 'a\nb'", "mfkit '\x1b[2J'", "mfkit 'open"])
def test_what_no_script_is_made_of(written: str, tmp_path: Path, chain: Path, mfkit) -> None:
    changed(chain / "mft.safetensors", tmp_path / "s.safetensors", lambda _, record: record.update(command=written))
    failed(mfkit("inspect s.safetensors --script"), 3, "s.safetensors records what is no command of mfkit")


def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, chain: Path, mfkit) -> None:
    tar_of(tmp_path / "secret.tar", [("a.latent.npy", latent()), ("a.cls", b"1")])
    document = json.loads((chain / "latents/index.json").read_text())
    for name in ("../secret.tar", f"{tmp_path}/secret.tar", "a\0b", ""):
        (tmp_path / "latents").mkdir(exist_ok=True)
        document["shards"][0] |= {"name": name, "offsets": [0, 1024]}
        (tmp_path / "latents/index.json").write_text(json.dumps(document))
        failed(mfkit("train-teacher latents -o t.safetensors --steps 1"), 3, "index.json is damaged")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae") / "vae"
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers_per_block", 10**8), ("block_out_channels", [10**6, 10**6]), ("block_out_channels", "abc"),
        ("scaling_factor", "0.18"), ("shift_factor", []), ("norm_num_groups", 0), ("latent_channels", None),
        ("down_block_types", ["os.system"] * 2), ("act_fn", "x"),
    ],
)  # fmt: skip
def test_a_vae_that_fills_memory_or_is_none(field: str, value: Any, vae: Path, tmp_path: Path, mfkit) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(vae / "diffusion_pytorch_model.safetensors")
    config = json.loads((vae / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    failed(mfkit("encode digits:heldout --vae vae --image-size 32 --preset digits -o out"), 3, "vae")


def test_a_vae_is_its_config_and_one_file_of_tensors(vae: Path, tmp_path: Path, mfkit) -> None:
    """Other things that diffusers would follow in such a folder, as an index of files elsewhere, are not looked at."""
    folder = tmp_path / "vae"
    folder.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / name).write_bytes((vae / name).read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "torchao"}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"a": Bomb()}, folder / "evil.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(vae / name), "evil.bin")}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert mfkit("encode digits:heldout --vae vae --image-size 32 --preset digits -o out").code == 0
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: os.truncate(path.open("wb").name, 1 << 33)])  # fmt: skip
def test_images_that_are_no_files_or_endless(make, tmp_path: Path, chain: Path, mfkit) -> None:
    (tmp_path / "images").mkdir()
    make(tmp_path / "images/a.png")
    failed(mfkit(f"encode images --rae {chain}/rae.safetensors --preset digits -o out"), 3, "images")


def test_weights_that_claim_more_than_they_hold(tmp_path: Path, mfkit) -> None:
    """A number that stands for millions, and tensors of no numbers but great widths."""
    wide = {
        "x_embedder.proj.weight": (10**9, 0, 1, 1), "s_embedder.proj.weight": (10**9, 0, 1, 1), "pos_embed": (1, 4, 0),
        "y_embedder.embedding_table.weight": (11, 0), "enc_feat_rope.freqs_cos": (4, 4),
        "dec_feat_rope.freqs_cos": (4, 4), "blocks.0.attn.qkv.weight": (0, 10**9),
    }  # fmt: skip
    empty = {name: torch.zeros(shape) for name, shape in wide.items()}
    write_tensors(tmp_path / "empty.safetensors", empty, {})
    failed(mfkit("import empty.safetensors -o x.safetensors"), 3, "empty.safetensors")
    torch.save({name: torch.zeros(()).expand(20000, 3000, 1, 1) for name in wide}, tmp_path / "repeated.pt")
    failed(mfkit("import repeated.pt -o x.safetensors"), 3, "repeated.pt holds weights that claim more numbers")
    torch.save({name: torch.zeros(20000, 3000, 1, 1, device="meta") for name in wide}, tmp_path / "none.pt")
    failed(mfkit("import none.pt -o x.safetensors"), 3, "none.pt holds no weights")


@pytest.mark.parametrize("architecture", ["vit_7b_patch16_dinov3", "vit_giant_patch14_dinov2"])
def test_an_encoder_that_is_larger_than_its_file(architecture: str, tmp_path: Path, mfkit) -> None:
    write_tensors(tmp_path / "model.safetensors", {"pos_embed": torch.zeros(1, 5, 2)}, {})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    command = (
        "train-rae digits:heldout --encoder model.safetensors --preset digits --encoder-size 224 -o rae.safetensors"
    )
    failed(mfkit(command), 3, "model.safetensors")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AutoencoderRAE as diffusers saves it, with an encoder of timm's names."""
    folder = tmp_path_factory.mktemp("rae")
    small = dict(img_size=32, embed_dim=64, depth=1, num_heads=1, num_classes=0, no_embed_class=True)
    encoder = timm.create_model("vit_base_patch16_224", **small)
    sizes = dict(decoder_width=32, decoder_depth=1, decoder_heads=2, decoder_hidden=64)
    decoder = new_decoder(DecoderConfig(image_size=16, channels=64, side=2, **sizes))
    tensors = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    tensors |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    tensors |= {name: torch.ones(1, 3, 1, 1) for name in ("encoder_mean", "encoder_std")}
    tensors |= {name: torch.ones(1, 64, 1, 1) for name in ("_latents_mean", "_latents_std")}
    write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors, {})
    config = {
        "_class_name": "AutoencoderRAE", "encoder_type": "mae", "encoder_hidden_size": 64,
        "encoder_num_hidden_layers": 1, "encoder_patch_size": 16, "encoder_input_size": 32, "patch_size": 8,
        "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_an_rae(autoencoder: Path, mfkit) -> None:
    assert mfkit(f"import {autoencoder} -o rae.safetensors").code == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decoder_num_hidden_layers", 10**6), ("encoder_num_hidden_layers", 10**6), ("decoder_hidden_size", 10**6),
        ("encoder_hidden_size", 10**6), ("encoder_input_size", 10**6), ("encoder_input_size", 16 * 1000),
        ("patch_size", 10**6), ("decoder_intermediate_size", 10**9),
    ],
)  # fmt: skip
def test_a_folder_of_an_rae_that_fills_memory(field: str, value: int, autoencoder: Path, tmp_path: Path, mfkit) -> None:
    folder = tmp_path / "rae"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(autoencoder / "diffusion_pytorch_model.safetensors")
    config = json.loads((autoencoder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    failed(mfkit("import rae -o x.safetensors"), 3, "rae")
