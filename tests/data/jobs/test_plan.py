"""Plans: decided once, the same wherever and whenever they are made, and open about what they leave out."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nova3d import cameras
from nova3d.data.jobs.attribution import write_attribution
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.plan import RenderPlan, estimate, load_plan, read_plan, split_of, write_plan
from nova3d.data.shards import encode_pictures
from nova3d.data.sources import Asset, SourceConfig
from nova3d.errors import InputError
from nova3d.rendering.engine import EngineConfig, make_engine

SCAN = Path(__file__).parents[3] / "assets/gso30-sample/mesh.glb"
NAMES = [f"thing{i:02d}" for i in range(40)]


@pytest.fixture
def config(tmp_path: Path) -> RenderConfig:
    """A folder of 40 files, every fourth not free, every tenth without a licence."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    rows = []
    for i, name in enumerate(NAMES):
        (folder / f"{name}.glb").write_bytes(name.encode())
        if i % 10:
            rows.append({"name": name, "licence": "by-nc" if i % 4 == 0 else "CC-BY-4.0", "attribution": f"Maker {i}"})
    (tmp_path / "licences.json").write_text(json.dumps({"objects": rows}))
    source = SourceConfig(path=str(folder), licences=str(tmp_path / "licences.json"))
    return RenderConfig(source=source, out=str(tmp_path / "job"), size=64, val_share=0.3)


def files(plan: RenderPlan) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in plan.folder.iterdir()}


def test_a_plan_has_every_object_once(config: RenderConfig) -> None:
    plan = write_plan(config)
    assert set(files(plan)) == {"plan.json", "plan.jsonl"}
    assets = plan.assets()
    assert sorted(asset.uid for asset in assets) == NAMES
    assert [asset.uid for asset in assets] != NAMES  # a fair sample comes first, not the alphabet's beginning
    assert all(isinstance(asset, Asset) and asset.path.endswith(f"{asset.uid}.glb") for asset in assets)
    assert plan.counts["objects"] == 40 == plan.counts["train"] + plan.counts["val"] and 2 < plan.counts["val"] < 25
    assert plan.licences == {"": 4, "CC-BY-4.0": 28, "CC-BY-NC-4.0": 8}
    assert read_plan(config.out) == plan


def test_a_plan_is_the_same_every_time(config: RenderConfig) -> None:
    first = files(write_plan(config))
    assert files(write_plan(config)) == first
    order = [asset.uid for asset in read_plan(config.out).assets()]
    assert order[:4] == [
        "thing11",
        "thing06",
        "thing21",
        "thing38",
    ]  # by SHA-256 of the uid: the same in every process and on every machine


def test_licences_refuse_and_keep_the_row(config: RenderConfig) -> None:
    config.licences = ["cc-by-4.0", "CC0-1.0"]
    plan = write_plan(config)
    rows = plan.rows()
    refused = [row for row in rows if row["state"] == "refused"]
    assert len(rows) == 40 and len(refused) == plan.counts["refused"] == 12
    assert {row["reason"] for row in refused} == {"licence"} and {row["licence"] for row in refused} == {
        "",
        "CC-BY-NC-4.0",
    }
    assert {asset.licence for asset in plan.assets()} == {"CC-BY-4.0"}
    config.out += "-none"
    config.licences = ["MIT"]
    with pytest.raises(InputError, match=r"nothing to render.*licences=\[\] accepts every licence"):
        write_plan(config)
    config.engine.name = "blendr"
    with pytest.raises(InputError, match=r"engine\.name 'blendr' is not one of raster, blender, or package"):
        config.check()


def test_exclude_and_limit(config: RenderConfig) -> None:
    every = [asset.uid for asset in write_plan(config).assets()]
    config.out += "-few"
    config.licences, config.exclude, config.limit = ["CC-BY-4.0"], [every[0]], 5
    plan = write_plan(config)
    few = [asset.uid for asset in plan.assets()]
    assert len(few) == 5 and every[0] not in few
    assert [uid for uid in every if uid in few] == few  # the same order
    assert plan.counts["excluded"] == 1 and plan.counts["refused"] in (11, 12)
    assert plan.counts["over_limit"] == 40 - 1 - 5 - plan.counts["refused"]


def test_splits_stay_when_objects_come(config: RenderConfig) -> None:
    before = {asset.uid: asset.split for asset in write_plan(config).assets()}
    for i in range(20):
        (Path(config.source.path) / f"more{i}.glb").write_bytes(b"x")
    after = {asset.uid: asset.split for asset in write_plan(config).assets()}
    assert len(after) == 60 and all(after[uid] == split for uid, split in before.items())


def test_splits_have_their_share() -> None:
    uids = [f"{i:x}" for i in range(4000)]
    share = sum(split_of(uid, 0.25) == "val" for uid in uids) / 4000
    assert share == pytest.approx(0.25, abs=0.03)
    assert all(split_of(uid, 0.0) == "train" for uid in uids)
    assert {split_of(uid, 0.1) for uid in uids if split_of(uid, 0.25) == "train"} == {
        "train"
    }  # a larger share adds only
    assert [uid for uid in NAMES if split_of(uid, 0.3) == "val"][:5] == [
        "thing01",
        "thing03",
        "thing07",
        "thing11",
        "thing13",
    ]  # on every machine


def test_another_plan_is_not_overwritten(config: RenderConfig) -> None:
    first = files(write_plan(config))
    config.pool.workers = 7  # decides nothing about the pictures
    assert files(write_plan(config)) == first
    config.size = 128
    with pytest.raises(InputError, match=r"planned with other settings \(size was 64 and is now 128\)"):
        write_plan(config)
    config.size, config.engine.samples = 64, 99
    with pytest.raises(InputError, match=r"engine\.samples"):
        write_plan(config)
    assert {p.name: p.read_bytes() for p in Path(config.out).iterdir()} == first
    with pytest.raises(InputError, match="make one"):
        read_plan(Path(config.out) / "absent")
    (Path(config.out) / "plan.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_plan(config.out)


def test_what_the_plan_says(config: RenderConfig) -> None:
    config.pool.workers, config.licences = 4, ["CC-BY-4.0"]
    text = str(write_plan(config))
    for words in (
        "28 (",
        "12 for their licence",
        "unknown 4, CC-BY-4.0 28, CC-BY-NC-4.0 8",
        "448 of 64 pixels, ortho16",
        "on 4",
    ):
        assert words in text, words
    assert "core-hours" in text and "MB" in text and len(text.splitlines()) == 6


def test_disk_is_estimated_within_a_factor_of_two_of_a_rendered_scan() -> None:
    rig = cameras.preset("ortho4", 128)
    rendered = make_engine(EngineConfig(supersample=2)).render(SCAN, rig, lambda views: None)
    members = encode_pictures("scan", rendered.rgba, rendered.normals, {})
    assert 0.5 < estimate(1, 4, 128, EngineConfig())["bytes"] / sum(map(len, members.values())) < 2  # type: ignore[operator]


def test_gpu_hours_are_those_that_syncdreamer_reports() -> None:
    # "About 800k objects ... 16 views ... 2 weeks with 8 V100" is 14 * 24 * 8 GPU hours.
    cost = estimate(800_000, 16, 256, EngineConfig(name="blender", device="cuda"))
    assert cost["hours"] == pytest.approx(14 * 24 * 8, rel=0.01) and "not measured" in str(cost["basis"])


@pytest.mark.parametrize(
    ("settings", "size", "core_seconds"),
    [  # of an object with 16 views, as docs/rendering.md reports them
        ({"name": "raster"}, 128, 0.56),
        ({"name": "blender", "samples": 16}, 256, 2 * 10.8),
        ({"name": "blender", "samples": 64}, 256, 2 * 33.8),
    ],
)
def test_core_hours_are_within_a_factor_of_two_of_measured_runs(
    settings: dict[str, Any], size: int, core_seconds: float
) -> None:
    hours = estimate(3600, 16, size, EngineConfig(**settings))["hours"]
    assert 0.5 < float(hours) / core_seconds < 2


def test_an_engine_of_another_package_has_no_hours() -> None:
    assert "hours" not in estimate(1, 16, 256, EngineConfig(name="own.module:engine"))


def test_a_plan_of_an_earlier_version_goes_on(config: RenderConfig) -> None:
    write_plan(config)
    path = Path(config.out) / "plan.json"
    content = json.loads(path.read_text())
    unset = {"limit": 0, "source.list": "", "source.exclude_list": ""}
    assert all(content["settings"][key] is None for key in unset)
    path.write_text(json.dumps(content | {"settings": content["settings"] | unset}))
    load_plan(config)
    content["settings"].pop("source.count")  # a key that came later
    path.write_text(json.dumps(content))
    load_plan(config)
    with pytest.raises(InputError, match="limit was None and is now 3"):
        load_plan(replace(config, limit=3))
    for settings, words in ((content["settings"] | {"engine.gone": 1}, "unknown key 'engine.gone'"), (["size"], "")):
        path.write_text(json.dumps(content | {"settings": settings}))
        with pytest.raises(InputError, match=rf"plan\.json' is damaged, or of another version: .*{words}"):
            read_plan(config.out)


def test_credits(config: RenderConfig, tmp_path: Path) -> None:
    config.licences = ["CC-BY-4.0"]
    rows = write_plan(config).rows()
    rows[0] |= {"title": "A *bold* [title]", "attribution": "Zoë\nand | co", "url": "example.org/a"}
    page = write_attribution(rows, tmp_path / "credits")
    text = page.read_text()
    assert page.name == "ATTRIBUTION.md" and "28 objects" in text and "licenses/by/4.0/" in text and "Changes:" in text
    assert "NC" not in text  # what was refused is not used
    with (tmp_path / "credits" / "attribution.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 28 and [row["uid"] for row in table] == sorted(row["uid"] for row in table)
    assert table[0]["licence_url"].endswith("/by/4.0/") and table[0]["attribution"].startswith("Maker")
    write_attribution([{**rows[0], "state": "done"}, {**rows[1], "state": "failed"}], tmp_path / "one")
    (line,) = [line for line in (tmp_path / "one" / "ATTRIBUTION.md").read_text().splitlines() if line.startswith("- ")]
    assert line == rf"- A \*bold\* \[title\] - Zoë and \| co - example.org/a (`{rows[0]['uid']}`)"


def test_few_objects_still_make_a_validation_split(tmp_path: Path) -> None:
    """One of several goes to val, always the same; none where val_share is 0 or there is one object."""
    splits = {}
    for count, share in ((1, 0.01), (5, 0.01), (5, 0.0)):
        source = SourceConfig(kind="procedural", count=count)
        config = RenderConfig(source=source, out=str(tmp_path / f"job{count}{share}"), size=64, val_share=share)
        for _ in range(2):
            splits[count, share] = [asset.uid for asset in write_plan(config).assets() if asset.split == "val"]
    assert splits[1, 0.01] == splits[5, 0.0] == [] and len(splits[5, 0.01]) == 1
