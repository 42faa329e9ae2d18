"""--cache: remote shards, kept on a disk and read as those on this machine, from a server on this machine."""

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from conftest import failed, several
from safetensors.torch import load_file

from mfkit.config.settings import Reading
from mfkit.data.latents import open_latents
from mfkit.data.remote import FetchError, fetch
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
        self.tag: str | None = '"one"'
        self.answers_416 = False
        """To whatever asks for a part."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    about = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            about.requests.append(f"{self.path.strip('/')}{f' {asked}' if asked else ''}")
            if asked and about.answers_416:
                return self.send_error(416)
            if self.headers.get("If-Range", about.tag) != about.tag:
                asked = None
            file = about.folder / self.path.strip("/")
            if not file.is_file():
                return self.send_error(404)
            body = file.read_bytes()
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
            if begin >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            if about.tag:
                self.send_header("ETag", about.tag)
            self.send_header("Content-Length", str(len(body) - begin))
            self.end_headers()
            end = begin + about.cuts.pop(0) if about.cuts else len(body)
            self.wfile.write(body[begin:end])
            return None

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    about.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
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


def test_a_training_reads_them_as_those_on_this_machine(mfkit, chain: Path, latents: Path) -> None:
    """Each is fetched once; a second run needs no server."""
    options = "--preset digits --steps 4 --batch-size 128 --ema 0"
    with serving(latents) as server:
        remote = f"train-teacher {server.url}/ --cache kept {options}"
        assert (done := mfkit(f"{remote} -o remote.safetensors")).code == 0, done.err
        assert sorted(server.requests) == sorted(["index.json", *(f"{path.name}" for path in latents.glob("*.tar"))])
        next_one = f"distill --teacher remote.safetensors --init {chain}/cmt.safetensors --preset digits --steps 1"
        assert (done := mfkit(f"{next_one} -o s.safetensors")).code == 0, done.err  # by the recorded copy
    assert (done := mfkit(f"{remote} -o again.safetensors")).code == 0, done.err
    assert mfkit(f"train-teacher {latents} {options} -o local.safetensors").code == 0
    local = load_file("local.safetensors")
    for name in ("remote", "again"):
        found = load_file(f"{name}.safetensors")
        assert all(torch.equal(found[key], value) for key, value in local.items())


def test_processes_fetch_what_they_need_once(latents: Path, tmp_path: Path) -> None:
    """Those of a machine share the copies, and train as by shards on its disk."""
    train = "train-teacher {} --preset digits --steps 4 --batch-size 128 --ema 0 -o {}.safetensors"
    with serving(latents) as server:
        done = several(
            tmp_path, f"{train.format(server.url, 'remote')} --cache kept", train.format(latents, "local"), processes=2
        )
    codes = [(tmp_path / f"codes{rank}").read_text().split() for rank in range(2)]
    assert codes == 2 * [["0", "0"]], done.stderr
    assert sorted(server.requests) == sorted(["index.json", *(f"{path.name}" for path in latents.glob("*.tar"))])
    remote, local = (load_file(tmp_path / f"{name}.safetensors") for name in ("remote", "local"))
    assert all(torch.equal(remote[name], value) for name, value in local.items())


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
@pytest.mark.parametrize("tag", ['"one"', None, 'W/"weak"'])
def test_what_breaks_off_goes_on(latents: Path, tmp_path: Path, tag: str | None) -> None:
    """Where the server can tell that it is the same file; else anew."""
    with serving(latents) as server:
        server.cuts, server.tag = [1000, 500], tag
        fetch(f"{server.url}/00000.tar", tmp_path / "a.tar")
        gone_on = ["00000.tar bytes=1000-", "00000.tar bytes=1500-"] if tag == '"one"' else ["00000.tar"] * 2
        assert server.requests == ["00000.tar", *gone_on]
    assert (tmp_path / "a.tar").read_bytes() == (latents / "00000.tar").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["a.tar"]


def test_no_two_versions_are_joined(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who gets nothing waits twice as long each time, and then gives up."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    first, second = ((latents / f"0000{number}.tar").read_bytes() for number in (0, 1))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "t.tar").write_bytes(first)
    with serving(tmp_path / "there") as server:
        for kept, tag, expected in ((len(first), '"one"', first), (700, '"two"', second)):
            (tmp_path / ".t.tar.partial").write_bytes(first[:kept])  # of a process that was killed
            (tmp_path / ".t.tar.partial.version").write_text('"one"')
            if tag == '"two"':
                (tmp_path / "there" / "t.tar").write_bytes(second)
            server.tag = tag
            fetch(f"{server.url}/t.tar", tmp_path / "t.tar")
            assert (tmp_path / "t.tar").read_bytes() == expected
            (tmp_path / "t.tar").unlink()
        server.cuts, server.answers_416 = [1000] * 99, True
        with pytest.raises(FetchError, match="t.tar cannot be fetched"):
            fetch(f"{server.url}/t.tar", tmp_path / "t.tar")
        assert len(server.requests) < 20 and waits[-4:] == [0.5, 1, 2, 4]


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
    for location in ("https://h/a.tar.gz", "http://[::1", "https://h/é.tar", "https://h/a.tar::file:///etc/b.tar"):
        failed(mfkit(train.format(location)), 2, "--cache")
    shutil.copytree(latents, tmp_path / "damaged")
    damaged = bytearray((latents / "00001.tar").read_bytes())
    damaged[5000] ^= 1
    (tmp_path / "damaged" / "00001.tar").write_bytes(damaged)
    with serving(tmp_path / "damaged") as server:
        failed(mfkit(train.format(server.url)), 3, "00001.tar is not what its index says")
        failed(mfkit(train.format(f"{server.url}/nothing")), 3, "/nothing/index.json cannot be fetched", "404")
        with pytest.raises(FetchError, match="cannot be fetched"):
            fetch(f"{server.url}/9.tar", tmp_path / "9.tar")
        (tmp_path / "damaged" / "index.json").write_text("<p>Log in first.</p>")
        failed(mfkit(train.format(f"{server.url}/").replace("kept", "other")), 3, f"{server.url}: ", "index.json")
        shutil.copy(latents / "index.json", tmp_path / "damaged" / "index.json")
        assert open_latents("latents", server.url, reading=Reading(cache=tmp_path / "other")).class_names  # not kept


@pytest.mark.fast
def test_a_partial_copy_is_read_with_the_option_alone(latents: Path, tmp_path: Path) -> None:
    """A folder of others does not have mfkit fetch."""
    with serving(latents) as server:
        copy = open_latents("latents", server.url, reading=Reading(cache=tmp_path)).artifact.path
        with pytest.raises(InputError, match=f"is not fetched yet: pass --cache {tmp_path}"):
            open_latents("latents", str(copy))
        again = open_latents("latents", str(copy), reading=Reading(cache=tmp_path)).dataset
        assert server.requests == ["index.json"] and len(again.read([296])["latent"]) == 1


def test_images_are_kept_too(mfkit, chain: Path, tmp_path: Path) -> None:
    """Of shards that mfkit wrote, and of those alone, as anyone's are."""
    assert mfkit(f"sample {chain}/mft.safetensors -n 30 -o images --format tar").code == 0
    encode = f"encode {{}} --rae {chain}/rae.safetensors -o {{}} --shard-size 30"
    with serving(tmp_path / "images") as server:
        for location, output in ((server.url, "remote"), (f"{server.url}/{{00000..00000}}.tar", "foreign")):
            done = mfkit(f"{encode.format(location, output)} --cache kept")
            assert done.code == 0, done.err
    assert mfkit(encode.format("images", "local")).code == 0
    local = (tmp_path / "local" / "00000.tar").read_bytes()
    assert all((tmp_path / name / "00000.tar").read_bytes() == local for name in ("remote", "foreign"))
