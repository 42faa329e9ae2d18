"""--cache: remote shards, kept on a disk and read as those on this machine, from a server on this machine."""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from conftest import failed
from safetensors.torch import load_file

from mfkit.config.settings import Reading
from mfkit.data.latents import open_latents
from mfkit.data.remote import fetch
from mfkit.errors import InputError

MANY = 5
"""Shards."""


class Server:
    """Files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.requests: list[str] = []
        self.cuts: list[int] = []
        """Bytes after which each of the next answers breaks off."""
        self.takes_ranges = True


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    about = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range") if about.takes_ranges else None
            about.requests.append(f"{self.path.strip('/')}{f' {asked}' if asked else ''}")
            file = about.folder / self.path.strip("/")
            if not file.is_file():
                return self.send_error(404)
            body = file.read_bytes()
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
            if begin >= len(body):
                return self.send_error(416)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body) - begin))
            self.end_headers()
            end = begin + about.cuts.pop(0) if about.cuts else len(body)
            self.wfile.write(body[begin:end])
            return None

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    about.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield about
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def latents(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of several shards."""
    from conftest import run

    place = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        done = run(
            f"encode digits:heldout --rae {chain}/rae.safetensors -o latents --shard-size {-(-297 // MANY)}", patch
        )
    assert done.code == 0, done.err
    assert len(list((place / "latents").glob("*.tar"))) == MANY
    return place / "latents"


def test_a_training_reads_them_as_those_on_this_machine(mfkit, latents: Path) -> None:
    """Each is fetched once; a second run needs no server."""
    options = "--preset digits --steps 4 --batch-size 128 --ema 0"
    with serving(latents) as server:
        remote = f"train-teacher {server.url}/ --cache kept {options}"
        assert (done := mfkit(f"{remote} -o remote.safetensors")).code == 0, done.err
        assert sorted(server.requests) == sorted(["index.json", *(f"{path.name}" for path in latents.glob("*.tar"))])
    assert (done := mfkit(f"{remote} -o again.safetensors")).code == 0, done.err
    assert mfkit(f"train-teacher {latents} {options} -o local.safetensors").code == 0
    local = load_file("local.safetensors")
    for name in ("remote", "again"):
        found = load_file(f"{name}.safetensors")
        assert all(torch.equal(found[key], value) for key, value in local.items())


@pytest.mark.fast
def test_only_what_is_read_is_fetched(latents: Path, tmp_path: Path) -> None:
    with serving(latents) as server:
        opened = open_latents("latents", server.url, reading=Reading(cache=tmp_path)).dataset
        assert server.requests == ["index.json"] and len(opened) == 297
        found = opened.read([0, 1, 296])
    assert server.requests == ["index.json", "00000.tar", f"{MANY - 1:05d}.tar"]
    here = open_latents("latents", str(latents)).dataset.read([0, 1, 296])
    assert torch.equal(found["latent"], here["latent"]) and torch.equal(found["label"], here["label"])


@pytest.mark.fast
def test_tars_of_others_are_fetched_and_scanned(latents: Path, tmp_path: Path) -> None:
    pattern = f"{{00000..{MANY - 1:05d}}}.tar"
    with serving(latents) as server:
        reading = Reading(cache=tmp_path)
        opened = open_latents("latents", f"{server.url}/{pattern}", classes=10, reading=reading).dataset
    here = open_latents("latents", f"{latents}/{pattern}", classes=10).dataset
    assert len(opened) == len(here) == 297
    assert all(torch.equal(opened.read([7, 200])[name], here.read([7, 200])[name]) for name in ("latent", "label"))


@pytest.mark.fast
@pytest.mark.parametrize("takes_ranges", [True, False])
def test_what_breaks_off_goes_on(latents: Path, tmp_path: Path, takes_ranges: bool) -> None:
    with serving(latents) as server:
        server.cuts, server.takes_ranges = [1000, 500], takes_ranges
        fetch(f"{server.url}/00000.tar", tmp_path / "a.tar")
        gone_on = ["00000.tar bytes=1000-", "00000.tar bytes=1500-"] if takes_ranges else ["00000.tar"] * 2
        assert server.requests == ["00000.tar", *gone_on]
        assert (tmp_path / "a.tar").read_bytes() == (latents / "00000.tar").read_bytes()
        (tmp_path / ".b.tar.partial").write_bytes((latents / "00001.tar").read_bytes()[:700])  # of a killed process
        fetch(f"{server.url}/00001.tar", tmp_path / "b.tar")
        assert (tmp_path / "b.tar").read_bytes() == (latents / "00001.tar").read_bytes()


@pytest.mark.fast
def test_those_who_come_at_once_wait_for_one(latents: Path, tmp_path: Path) -> None:
    with serving(latents) as server, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fetch(f"{server.url}/00000.tar", tmp_path / "a.tar"), range(8)))
    assert server.requests == ["00000.tar"]


def test_what_cannot_be_kept_is_refused(mfkit, chain: Path, latents: Path, tmp_path: Path) -> None:
    train = "train-teacher {} --cache kept --preset digits --steps 1 -o x.safetensors"
    failed(mfkit(train.format(latents)), 2, "--cache keeps what http:// or https:// locations name")
    failed(mfkit(f"encode digits --cache kept --rae {chain}/rae.safetensors -o x"), 2, "digits is none")
    free = f"distill --teacher {chain}/teacher.safetensors --objective freeflow --cache kept -o x.safetensors"
    failed(mfkit(free), 2, "--cache: this training looks at no latents")
    shutil.copytree(latents, tmp_path / "damaged")
    damaged = bytearray((latents / "00001.tar").read_bytes())
    damaged[5000] ^= 1
    (tmp_path / "damaged" / "00001.tar").write_bytes(damaged)
    with serving(tmp_path / "damaged") as server:
        failed(mfkit(train.format(server.url)), 3, "00001.tar is not what its index says")
        failed(mfkit(train.format(f"{server.url}/nothing")), 3, "/nothing/index.json cannot be fetched: 404")
        with pytest.raises(InputError, match="cannot be fetched: 404"):
            fetch(f"{server.url}/9.tar", tmp_path / "9.tar")
