"""View folders that were made elsewhere become shards like those of a render job."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nova3d import cameras
from nova3d.data.jobs.attribution import write_attribution
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.pack import manifest_rows
from nova3d.data.jobs.pack_views import pack_views
from nova3d.data.jobs.verify import verify
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import ShardReader
from nova3d.errors import InputError
from nova3d.rendering import render_object
from nova3d.views import ViewSet

SIZE = 24


@pytest.fixture
def truth(lopsided_file: Path) -> ViewSet:
    return render_object(lopsided_file, cameras.orbit(4, size=SIZE), supersample=2)


@pytest.fixture
def renders(tmp_path: Path, truth: ViewSet) -> Path:
    folder = tmp_path / "renders"
    for name in ("cup", "hat", "shoe.v2"):
        truth.save(folder / name)
    terms = [{"name": "cup", "licence": "CC-BY-4.0", "attribution": "A. Potter"}, {"name": "hat", "licence": "CC0-1.0"}]
    (folder / "licences.json").write_text(json.dumps({"objects": terms}))
    return folder


def config(out: Path, **changes: object) -> RenderConfig:
    return replace(RenderConfig(out=str(out), size=SIZE, samples_per_shard=2), **changes)


def test_view_folders_become_sound_shards(renders: Path, truth: ViewSet, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    packed = pack_views(renders, config(out))
    assert packed.counts == {"train": 2, "val": 1}  # few objects still make a validation split
    checked = verify(out, deep=True)
    assert (checked.objects, checked.problems) == (3, [])
    reader = ShardReader([out / "train", out / "val"])
    assert sorted(sample["uid"] for sample in reader.samples) == ["cup", "hat", "shoe_v2"]
    for row in range(3):
        views = reader.views(row)
        assert (views.rgb - truth.rgb).abs().max() <= 1 / 255 + 1e-6
        assert (views.normals - truth.normals).norm(dim=-1).max() < 0.03  # 8 bits, twice
        assert torch.allclose(views.cameras.c2w, truth.cameras.c2w, atol=1e-6)
    assert len(MultiViewDataset([out / "train", out / "val"])) == 3


def test_the_same_views_give_the_same_bytes(renders: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert pack_views(renders, config(out)).changed
    before = {path: path.read_bytes() for path in out.rglob("shard-*.tar")}
    assert not pack_views(renders, config(out)).changed
    assert {path: path.read_bytes() for path in out.rglob("shard-*.tar")} == before


def test_licences_beside_the_views_are_read(renders: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    pack_views(renders, config(out, licences=["CC-BY-4.0", "CC0-1.0"]))
    rows = {row["uid"]: row for row in manifest_rows(out)}
    assert (rows["cup"]["licence"], rows["cup"]["attribution"]) == ("CC-BY-4.0", "A. Potter")
    assert (rows["shoe_v2"]["state"], rows["shoe_v2"]["reason"]) == ("refused", "licence")
    assert sum(row["split"] == "val" for row in rows.values() if row["state"] == "done") == 1
    assert not any("path" in row for row in rows.values())
    reader = ShardReader([out / "train", out / "val"])
    facts = {sample["uid"]: json.loads(reader.read(row)["json"]) for row, sample in enumerate(reader.samples)}
    assert facts["cup"]["licence"] == "CC-BY-4.0" and set(facts) == {"cup", "hat"}
    assert "A. Potter" in write_attribution(rows.values(), tmp_path / "credits").read_text()


def test_what_does_not_go_into_one_set_is_refused(renders: Path, truth: ViewSet, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    replace(truth, normals=torch.zeros_like(truth.normals)).save(renders / "hat")
    with pytest.raises(InputError, match="hat' has no normal maps"):
        pack_views(renders, config(out))
    truth.rotated_to(1)[[0, 1, 2]].save(renders / "hat")
    with pytest.raises(InputError, match=r"3 views of 24x24|4 views of 24x24"):
        pack_views(renders, config(out))
    turned = cameras.orbit(4, elevation_deg=10.0, size=SIZE)
    replace(truth, cameras=turned).save(renders / "hat")
    with pytest.raises(InputError, match="other cameras than the objects before it"):
        pack_views(renders, config(out))
    with pytest.raises(InputError, match="no view folders to pack"):
        pack_views(renders, config(out, licences=["MIT"]))
