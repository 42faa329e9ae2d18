"""mfkit new: what it refuses. That its script runs is shown by recipes/smoke.sh."""

from pathlib import Path

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
    failed(mfkit("new there/run.sh pets"), 4, "there/run.sh exists")
    assert (tmp_path / "there" / "run.sh").read_text() == "mine" and not (tmp_path / "project").exists()
