"""mfkit new: what it refuses. That its script runs is shown by recipes/smoke.sh."""

from pathlib import Path

import numpy as np
from conftest import failed
from PIL import Image


def test_what_no_project_is_begun_for(mfkit, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "run.sh").write_text("mine")
    failed(mfkit("new there digits"), 4, "there/run.sh exists")
    failed(mfkit("new project nowhere"), 3, "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    failed(mfkit("new project empty"), 3, "empty holds no images")
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "pets" / "cat" / "1.png")
    (tmp_path / "pets" / "thumbs").mkdir()
    failed(mfkit("new project pets"), 3, "thumbs has no images")
    np.savez(tmp_path / "gap.npz", arr_0=np.zeros((4, 32, 32, 3), np.uint8), arr_1=np.array([0, 0, 2, 2]))
    failed(mfkit("new project gap.npz"), 3, "class 1 has no images")
    np.savez(tmp_path / "none.npz", arr_0=np.zeros((0, 32, 32, 3), np.uint8))
    failed(mfkit("new project none.npz --preset small"), 3, "none.npz holds no images")
    failed(mfkit("new there/run.sh pets"), 4, "there/run.sh exists")
    assert (tmp_path / "there" / "run.sh").read_text() == "mine" and not (tmp_path / "project").exists()
