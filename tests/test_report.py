"""mfkit report: one page that has all of a run, needs nothing else, and runs nothing, whatever a file says."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from conftest import failed, run
from PIL import Image
from safetensors.torch import load_file

from mfkit.artifacts.artifact import open_artifact
from mfkit.artifacts.safetensors_files import read_header, write_tensors

FOLDERS = ("latents", "traj", "samples")
VOID = {"meta", "img", "line", "rect", "br"}


class Page(HTMLParser):
    """Text, tags with their attributes, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and tag not in ("li", "td", "tr", "th"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and tag not in ("li", "td", "tr", "th"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[tuple[str, Image.Image]]:
        found = [attributes for tag, attributes in self.tags if tag == "img"]
        data = [base64.b64decode(str(one["src"]).removeprefix("data:image/png;base64,")) for one in found]
        return [(str(one["alt"]), Image.open(io.BytesIO(png))) for one, png in zip(found, data, strict=True)]


@pytest.fixture(scope="module")
def place(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``page.html`` is of the chain's run, with a figure of its samples."""
    place = tmp_path_factory.mktemp("report")
    shutil.copytree(chain, place / "run", symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        fid = run(
            f"fid {chain}/samples --reference digits:train --features {chain}/rae.safetensors --metrics kid", patch
        )
        (place / "run" / "fid.json").write_text(fid.out)
        done = run("report run -o page.html", patch)
    assert done.code == 0 and done.out == "page.html\n", done.err
    return place


def test_the_page_has_all_of_the_run(place: Path) -> None:
    page = Page((place / "page.html").read_text())
    assert not page.open
    student = open_artifact(place / "run" / "mft.safetensors")
    records = {**student.provenance.history, student.digest: student.provenance}
    assert len(records) == 7
    for digest, record in records.items():
        assert digest in page.text and record.command in page.text
    assert json.dumps(student.provenance.settings, indent=1) in page.text
    times = {name: json.loads((place / "run" / name / ".time.json").read_text())["seconds"] for name in FOLDERS}
    text = (place / "page.html").read_text()
    rows = dict(re.findall(r'<th scope="row">(\w+).*?<td class="number">([\d:]*)</td>', text, re.DOTALL))
    shown = {name: f"{seconds // 60:.0f}:{seconds % 60:02.0f}" for name, seconds in times.items()}
    assert shown == {name: rows[name] for name in FOLDERS}
    measured = json.loads((place / "run" / "fid.json").read_text())
    assert (
        f"{measured['frechet_distance']:.4g}" in page.text
        and f"kernel distance {measured['kernel_distance']:.4g}" in page.text
    )
    (grid_alt, grid), (_, curves) = page.pictures()
    rows = re.findall(r"[^;:]+", grid_alt)[1:]
    assert [row.strip() for row in rows[:4]] == [
        "real", "real, encoded and decoded", "teacher.safetensors, 50 evaluations", "mft.safetensors, 1 evaluation"
    ]  # fmt: skip
    assert grid.size == (10 * 66, 66 * len(rows)) and curves.width > 1000


def test_the_rows_of_the_grid_are_what_they_say(place: Path, mfkit, chain: Path) -> None:
    """The third is drawn as ``sample`` draws, and what is nearest to real images is themselves."""
    _, grid = Page((place / "page.html").read_text()).pictures()[0]
    pixels = np.asarray(grid.convert("RGB"))
    assert mfkit(f"sample {chain}/mft.safetensors -n 10 --labels equal --seed 0 -o drawn.npz").code == 0
    drawn = np.load("drawn.npz")["arr_0"]
    for column in range(10):
        tile = pixels[3 * 66 + 1 : 4 * 66 - 1 : 2, column * 66 + 1 : column * 66 + 65 : 2]
        assert np.abs(tile.astype(int) - drawn[column]).max() <= 1


def test_real_images_are_of_their_class(mfkit, place: Path, tmp_path: Path) -> None:
    """Of more than are read, one class after the other; none of the last."""
    images, labels = np.zeros((2400, 32, 32, 3), np.uint8), np.arange(2400) // 300
    images[:] = (25 * labels)[:, None, None, None]
    np.savez(tmp_path / "sorted.npz", arr_0=images, arr_1=labels)
    assert mfkit(f"report {place}/run -o page.html --images sorted.npz").code == 0
    _, grid = Page((tmp_path / "page.html").read_text()).pictures()[0]
    pixels = np.asarray(grid.convert("RGB"))
    shades = [int(pixels[33, column * 66 + 33, 0]) for column in range(10)]
    assert shades == [*(25 * label for label in range(8)), 255, 255]


def test_real_images_of_few_classes_are_different_ones(mfkit, tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 8 * number).save(tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.png")
    (tmp_path / "run").mkdir()
    few = "--steps 1 --batch-size 8"
    for command in (
        f"train-rae images --encoder tiny --preset digits --pretrain-steps 1 {few} -o run/rae.safetensors",
        "encode images --rae run/rae.safetensors -o run/latents",
        f"train-teacher run/latents {few} -o run/teacher.safetensors",
        "report run -o page.html",
    ):
        assert (done := mfkit(command)).code == 0, done.err
    _, grid = Page((tmp_path / "page.html").read_text()).pictures()[0]
    pixels = np.asarray(grid.convert("RGB"))
    shades = [int(pixels[33, column * 66 + 33, 0]) // 8 for column in range(10)]
    assert len(set(shades)) == 10 and [shade % 2 for shade in shades] == 5 * [0, 1]


def test_nothing_on_the_page_can_run_or_be_fetched(place: Path) -> None:
    text = (place / "page.html").read_text()
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "form", "link", "base"}
    policy = next(attributes for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_what_files_say_becomes_text(mfkit, place: Path, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    (tmp_path / "run").mkdir()
    source = place / "run" / "mft.safetensors"
    texts = read_header(source).metadata
    record = json.loads(texts["mfkit.provenance"])
    record |= {"command": f"mfkit {attack}", "settings": {attack: attack}}
    record["inputs"] = {attack: {"path": attack, "kind": attack, "digest": attack}}
    texts |= {"mfkit.provenance": json.dumps(record)}
    write_tensors(
        tmp_path / "run" / "s.safetensors", load_file(source), {k: v for k, v in texts.items() if k != "mfkit.digest"}
    )
    figures = {
        "frechet_distance": attack,
        "features": attack,
        "samples": {"location": attack},
        "reference": {attack: 1},
    }
    (tmp_path / "run" / "fid.json").write_text(json.dumps(figures))
    huge = "1" + 400 * "0"  # no float holds it
    (tmp_path / "run" / "large.json").write_text(
        f'{{"frechet_distance": {huge}, "fdr": -{huge}, "samples": {{"images": {huge}}}, "untrained": [], "spaces": 3}}'
    )
    (tmp_path / "run" / "begun.log.jsonl").touch()
    (tmp_path / "run" / "broken.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"notjson!")
    done = mfkit("report run -o page.html")
    assert done.code == 0, done.err
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "<img src=x" not in text and "&lt;script&gt;" in text
    assert "Not read: " in text and "broken.safetensors" in text and "Without s.safetensors: " in text


def test_runs_beside_each_other(mfkit, place: Path, tmp_path: Path) -> None:
    assert mfkit(f"report {place}/run {place}/run -o two.html --no-images").code == 0
    page = Page((tmp_path / "two.html").read_text())
    assert len(page.pictures()) == 2  # the curves of both
    assert page.text.count("fid.json") == 2 and "2 runs" in page.text
    (tmp_path / "empty").mkdir()
    failed(mfkit("report empty -o x.html"), 3, "empty holds no file that mfkit wrote")
    failed(mfkit("report gone -o x.html"), 3, "gone is not a folder")


def test_a_figure_stands_beside_its_target(mfkit, place: Path, tmp_path: Path) -> None:
    """The one that was asked for, else what the teacher has under the same conditions."""

    def cells(options: str = "") -> list[str]:
        assert mfkit(f"report run -o page.html --no-images --overwrite {options}").code == 0
        return re.findall(r"<td>([^<]*reached)</td>", (tmp_path / "page.html").read_text())

    shutil.copytree(place / "run", "run", symlinks=True, ignore=shutil.ignore_patterns("*.log.jsonl"))
    student = json.loads(Path("run/fid.json").read_text())
    assert cells() == []
    distance = student["frechet_distance"]
    of_teacher = student["samples"] | {"model_digest": open_artifact(Path("run/teacher.safetensors")).digest}
    for ratio, told in ((2, "reached"), (0.5, "not reached")):
        teacher = student | {"samples": of_teacher, "frechet_distance": ratio * distance}
        Path("run/teacher.json").write_text(json.dumps(teacher))
        assert cells() == [f"the teacher&#39;s {ratio * distance:.4g}: {told}"]
    assert cells(f"--target fid.json={2 * distance}") == [f"{2 * distance:.4g}: reached"]
    several = teacher | {"spaces": {"rae.safetensors": teacher, "pixels": {"frechet_distance": 1}}}
    Path("run/teacher.json").write_text(json.dumps(several))
    assert cells() == [f"the teacher&#39;s {distance / 2:.4g}: not reached"]  # in the same space, by whatever name
    Path("run/another.json").write_text(json.dumps(teacher | {"frechet_distance": distance / 4}))
    assert cells() == [f"the teacher&#39;s {distance / 4:.4g}: not reached"]
    Path("run/another.json").unlink()
    spaces = {"rae": student | {"trained_on": True}}
    untrained = {"features": "8 x 8", "frechet_distance": 2}
    Path("run/fid.json").write_text(json.dumps(student | {"spaces": spaces, "untrained": untrained}))
    assert cells() == []
    Path("run/teacher.json").write_text(json.dumps(teacher | {"spaces": {"pixels": untrained}}))
    assert cells() == ["the teacher&#39;s 2: reached"]  # of what is evidence alone
    Path("run/fid.json").write_text(json.dumps(student))
    for other in ({"images": 7}, {"labels": "others"}, {"model_digest": "0"}):
        Path("run/teacher.json").write_text(json.dumps(teacher | {"samples": of_teacher | other}))
        assert cells() == []
    failed(mfkit("report run -o x.html --target other.json=1"), 2, "no run has figures of that name")
    for wrong in ("2.03", "fid.json=good", "fid.json=-1", "fid.json=inf", "=1"):
        failed(mfkit(f"report run -o x.html --target {wrong}"), 2, f"--target {wrong}: give FILE=X")


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_on_paper_on_a_telephone_and_by_a_screen_reader(place: Path, tmp_path: Path) -> None:
    """Paper has what is folded on the screen; nothing is wider than a telephone; all that can be told has a name."""
    with Browser(f"file://{place}/page.html", tmp_path / "profile") as page:
        page.wait_for("document.querySelector('footer, main') && document.images.length == 2")
        folded = "[...document.querySelectorAll('details > *:not(summary)')].map(e => e.checkVisibility(CHECK))"
        folded = folded.replace("CHECK", "{contentVisibilityAuto: true, visibilityProperty: true}")
        assert page.evaluate(folded) and not any(page.evaluate(folded))
        page.call("Emulation.setEmulatedMedia", media="print")
        page.wait_for(f"{folded}.every(Boolean)")
        page.call("Emulation.setEmulatedMedia", media="screen")
        page.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.call("Accessibility.enable")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        told = [node for node in nodes if node["role"].get("value") in ("image", "region", "link", "heading")]
        assert len(told) > 10 and all(node["name"]["value"].strip() for node in told)
        assert not page.complaints


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_in_a_browser(place: Path, tmp_path: Path) -> None:
    """Nothing on its console; the grid is on the screen, pixel by pixel."""
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/profile",
            "--enable-logging=stderr", "--hide-scrollbars", "--force-device-scale-factor=1", "--window-size=1000,4000",
            f"--screenshot={shot}", f"file://{place}/page.html",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    _, grid = Page((place / "page.html").read_text()).pictures()[0]
    screen, tile = (np.asarray(one.convert("RGB")).astype(int) for one in (Image.open(shot), grid))
    places = np.argwhere((screen[: -tile.shape[0], :300] == tile[0, 0]).all(-1))
    assert any(
        (screen[y : y + tile.shape[0], x : x + tile.shape[1]] == tile).all()
        for y, x in places
        if (screen[y : y + tile.shape[0] : 33, x + 40] == tile[::33, 40]).all()
    )
