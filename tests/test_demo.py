"""mfkit demo: a page in a real browser, whose pictures are those of mfkit sample."""

import io
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser
from conftest import failed
from PIL import Image

pytest.importorskip("gradio")
from mfkit.reporting.demo import between_noises

IMAGES = (
    "[...document.querySelectorAll('img')].filter(i => i.naturalWidth && i.offsetParent && i.src.includes('/file='))"
)


def pictures(page: Browser) -> list[np.ndarray]:
    """Those on the screen."""
    source = f"""Promise.all({IMAGES}.map(async i => {{
        const bytes = new Uint8Array(await (await fetch(i.src)).arrayBuffer());
        return btoa(String.fromCharCode(...bytes));
    }}))"""
    return [np.asarray(Image.open(io.BytesIO(b64decode(one))).convert("RGB")) for one in page.evaluate(source)]


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_in_a_browser(mfkit, chain: Path, tmp_path: Path) -> None:
    drawn = mfkit(f"sample {chain}/mft.safetensors -n 10 --seed 3 --labels equal -o drawn.npz")
    assert drawn.code == 0, drawn.err
    with np.load("drawn.npz") as held:
        expected = held["arr_0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mfkit", "demo", chain / "mft.safetensors", "--teacher", chain / "teacher.safetensors"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = server.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), server.stderr.read()
        with Browser(address, tmp_path / "profile") as page:
            page.wait_for(f"{IMAGES}.length == 10")
            before = pictures(page)
            page.evaluate("""(() => {
                const seed = document.querySelector('input[type=number]');
                seed.value = 3;
                seed.dispatchEvent(new Event('input'));
                seed.dispatchEvent(new Event('change'));
            })()""")
            for _ in range(100):
                shown = pictures(page)
                if len(shown) == 10 and not np.array_equal(shown[0], before[0]):
                    break
                page.wait_for("new Promise(done => setTimeout(() => done(true), 200))")
            size = expected.shape[1]
            for one, sample in zip(shown, expected, strict=True):
                times = one.shape[0] // size
                assert abs(one[::times, ::times].astype(int) - sample).max() <= 1  # drawn in other batches
            for tab, count in (("From one noise to another", 10), ("Beside its teacher", 20)):
                page.evaluate(
                    f"[...document.querySelectorAll('button[role=tab]')].find(b => b.innerText == '{tab}').click()"
                )
                page.wait_for(f"{IMAGES}.length == {count}")
            told = "[...document.querySelectorAll('button')].map(b => b.innerText).filter(t => t.endsWith(' ms'))"
            shown = page.evaluate(told)
            assert sum(text.startswith("student: ") for text in shown) == 10, shown
            assert sum(text.startswith("teacher: ") for text in shown) == 10
            assert not page.complaints
            assert all(url.startswith((address, "data:", "blob:")) for url in page.asked)
        what_is_asked_for_is_drawn(mfkit, chain, address)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
    finally:
        server.kill()
        server.communicate()


def what_is_asked_for_is_drawn(mfkit, chain: Path, address: str) -> None:
    """Classes, seed, number and evaluations, by gradio's own client."""
    from gradio_client import Client

    client = Client(address, verbose=False)
    for nfe in (1, 4):
        drawn = client.predict([3, 7], 5, 4, nfe, api_name="/draw")
        done = mfkit(f"sample {chain}/mft.safetensors -n 4 --seed 5 --labels 3,7 --nfe {nfe} -o {nfe}.npz")
        assert done.code == 0, done.err
        with np.load(f"{nfe}.npz") as held:
            samples = held["arr_0"]
        for one, sample, label in zip(drawn, samples, [3, 7, 3, 7], strict=True):
            assert re.fullmatch(rf"{label}, [\d.e+]+ ms", one["caption"])
            picture = np.asarray(Image.open(one["image"]).convert("RGB"))
            times = len(picture) // len(sample)
            assert abs(picture[::times, ::times].astype(int) - sample).max() <= 1
    assert client.predict([], 5, 4, 1, api_name="/draw") == []


def test_the_way_from_one_noise_to_another_is_noise() -> None:
    """Of variance 1 everywhere; the ends are as they were."""
    first, last = torch.randn(2, 1, 64, 32, 32)
    between = between_noises(first, last, 9)
    assert torch.allclose(between[0], first) and torch.allclose(between[-1], last, atol=1e-6)
    assert (between.flatten(1).var(1) - 1).abs().max() < 0.02


def test_what_it_cannot_show_is_refused(mfkit, chain: Path) -> None:
    student = f"{chain}/mft.safetensors"
    failed(mfkit(f"demo {student} --teacher {student}"), 3, "is a student")
    failed(mfkit(f"demo {chain}/rae.safetensors"), 3, "expected")
    failed(mfkit(f"demo {student} --host 192.0.2.1"), 3, "--host 192.0.2.1")
