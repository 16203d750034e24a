"""From finished objects to shards that are checked, and what `scripts/render.py` says of it."""

import json
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nova3d.data.jobs import job, journal, pack
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.verify import verify
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import ShardReader, encode_pictures, write_object
from nova3d.errors import InputError
from nova3d.utils import provenance

pytestmark = pytest.mark.usefixtures("fake_worker")
ROOT = Path(__file__).parents[3]
MakeJob = Callable[..., RenderConfig]
MESHES: dict[str, dict[str, Any]] = {f"o{i}": {} for i in range(9)} | {"empty": {"fault": "refuse"}}


@pytest.fixture
def done(make_job: MakeJob) -> RenderConfig:
    config = make_job(MESHES)
    job.run(config)
    return config


def stats(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for s in ("train", "val") for path in sorted((out / s).iterdir())}


def rows(out: Path) -> list[dict[str, Any]]:
    return pack.manifest_rows(out)


def test_shards_are_sorted_by_hash_and_split_by_it(done: RenderConfig) -> None:
    out = Path(done.out)
    train, val = ShardReader(out / "train"), ShardReader(out / "val")
    assert len(train) + len(val) == 9 and len(val) >= 1
    for reader in (train, val):
        uids = [sample["uid"] for sample in reader.samples]
        assert uids == sorted(uids, key=provenance.stable_hash)
        shards = [sample["shard"] for sample in reader.samples]
        assert shards == sorted(shards) and max(map(shards.count, shards)) <= 3
        assert reader.index["rig"] and reader.index["engines"] == [{"name": "fake"}]
    assert len(MultiViewDataset([out / "train", out / "val"])) == 9
    found = {row["uid"]: row for row in rows(out)}
    assert found.keys() == MESHES.keys() and found["empty"]["reason"] == "empty_scene" and not found["empty"]["shard"]
    with tarfile.open(out / "train/shard-00000.tar") as tar:
        assert all(member.mtime == 0 and member.isfile() for member in tar.getmembers())


def test_the_split_does_not_depend_on_the_hash_seed(done: RenderConfig) -> None:
    code = "import sys; from nova3d.data.jobs.plan import split_of; print([split_of(u, 0.3) for u in sys.argv[1:]])"
    uids = sorted(row["uid"] for row in rows(Path(done.out)))
    command = [sys.executable, "-c", code, *uids]
    elsewhere = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONHASHSEED": "12345"})
    ours = {row["uid"]: row["split"] for row in rows(Path(done.out))}
    assert elsewhere.stdout.strip() == str([ours[uid] for uid in uids]) and len(set(ours.values())) == 2


def test_packing_again_changes_nothing_and_heals_what_is_damaged(done: RenderConfig) -> None:
    out = Path(done.out)
    before = stats(out)
    assert not pack.pack(done).changed and stats(out) == before
    shard = out / "train/shard-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"x")
    assert pack.pack(done).changed and shard.read_bytes() == content


def test_fewer_objects_leave_no_old_shard_behind(done: RenderConfig) -> None:
    out = Path(done.out)
    done.samples_per_shard = 1
    assert pack.pack(done).changed
    assert len(list((out / "train").glob("*.tar"))) == len(ShardReader(out / "train"))
    done.samples_per_shard = 100
    pack.pack(done)
    assert [path.name for path in (out / "train").glob("*.tar")] == ["shard-00000.tar"]
    assert verify(out, deep=True).problems == []


def test_an_incomplete_job_is_packed_only_when_told_to(make_job: MakeJob) -> None:
    config = make_job(MESHES)
    config.pack = False
    job.run(config)
    path = journal.object_path(Path(config.out), "o3")
    path.unlink()
    with pytest.raises(InputError, match=r"1 of 10 planned objects in .* are not rendered yet \('o3' is one\)"):
        pack.pack(config)
    assert sum(pack.pack(config, incomplete=True).counts.values()) == 8
    assert {row["uid"]: row["state"] for row in rows(Path(config.out))}["o3"] == "waiting"


def test_look_alikes_are_dropped_with_their_reason(make_job: MakeJob, tmp_path: Path) -> None:
    config = make_job(MESHES)
    source = Path(config.source.path)
    shutil.copyfile(source / "o1.obj", source / "copy.obj")
    job.run(config)
    found = {row["uid"]: row for row in rows(Path(config.out))}
    kept, dropped = sorted(("o1", "copy"), key=provenance.stable_hash)
    assert found[dropped]["dup_of"] == kept and found[dropped]["reason"] == "duplicate" and not found[dropped]["shard"]
    assert found[kept]["state"] == "done" and found[kept]["split"] == found[dropped]["split"]


def test_what_the_plan_refuses_has_a_row_too(make_job: MakeJob, tmp_path: Path) -> None:
    config = make_job({"free": {}, "bound": {}})
    terms = [{"name": "free", "licence": "CC0-1.0"}, {"name": "bound", "licence": "CC-BY-NC-4.0"}]
    (tmp_path / "licences.json").write_text(json.dumps({"objects": terms}))
    config.source.licences, config.licences = str(tmp_path / "licences.json"), ["CC0-1.0"]
    job.run(config)
    found = {row["uid"]: (row["state"], row["reason"]) for row in rows(Path(config.out))}
    assert found == {"free": ("done", ""), "bound": ("refused", "licence")}


def test_a_job_without_a_usable_object_says_so(make_job: MakeJob) -> None:
    with pytest.raises(
        InputError, match=r"none of the 1 planned objects could be packed.*'empty': empty_scene: refuse"
    ):
        job.run(make_job({"empty": {"fault": "refuse"}}))


def test_one_flipped_bit_is_found_and_its_object_named(done: RenderConfig) -> None:
    out = Path(done.out)
    assert verify(out).problems == [] and verify(out, deep=True).problems == []
    sample = ShardReader(out / "train").samples[1]
    shard = out / "train" / sample["shard"]
    content = shard.read_bytes()
    offset, size = sample["members"]["normal.002.png"]
    for place in (offset + size // 2, offset + size - 1):
        flipped = bytearray(content)
        flipped[place] ^= 4
        shard.write_bytes(flipped)
        assert verify(out).problems == []  # a quick look does not read pictures
        problems = verify(out, deep=True).problems
        assert len(problems) == 2 and f"object '{sample['uid']}'" in problems[1] and "SHA-256" in problems[0]
    flipped = bytearray(content)
    flipped[offset - 512] ^= 1  # in the tar header
    shard.write_bytes(flipped)
    assert len(problems := verify(out).problems) == 1 and f"object '{sample['uid']}'" in problems[0]
    flipped = bytearray(content)
    flipped[-1] ^= 1  # in the padding, which belongs to no object
    shard.write_bytes(flipped)
    assert [p.split("'")[0] for p in verify(out, deep=True).problems] == ["shard "]
    shard.write_bytes(content[:-512])
    assert "bytes, its index gives" in verify(out).problems[0]
    shard.unlink()
    assert "missing" in verify(out).problems[0]


def test_pictures_that_do_not_belong_together_are_found(done: RenderConfig) -> None:
    """Checksums alone would not say so: the index is written from the same wrong bytes."""
    out = Path(done.out)
    uid = ShardReader(out / "train").samples[0]["uid"]
    path = journal.object_path(out, uid)
    with tarfile.open(path) as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    rgba = torch.zeros(4, 24, 24, 4)
    empty = encode_pictures(uid, rgba, rgba[..., :3], {})
    contents[f"{uid}.normal.001.png"] = empty[f"{uid}.normal.001.png"]  # no normals where there is a mask
    contents[f"{uid}.rgb.003.png"] = empty[f"{uid}.rgb.003.png"]  # normals where there is none
    write_object(path, contents, "test")
    pack.pack(done)
    assert [p for p in verify(out, deep=True).problems if f"object '{uid}': view 1: mask and normals disagree" in p]
    contents[f"{uid}.rgb.001.png"] = empty[f"{uid}.rgb.001.png"]
    write_object(path, contents, "test")
    pack.pack(done)
    assert [p for p in verify(out, deep=True).problems if f"object '{uid}': view 3: mask and normals disagree" in p]


def test_a_damaged_or_foreign_object_is_named(done: RenderConfig) -> None:
    path = journal.object_path(Path(done.out), "o2")
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    with pytest.raises(InputError, match=r"o2\.tar' is damaged"):
        pack.pack(done)
    place = whole.index(b'"rig": "') + len(b'"rig": "')
    path.write_bytes(whole[:place] + b"z" + whole[place + 1 :])
    with pytest.raises(InputError, match=r"o2\.tar' was rendered with another rig"):
        pack.pack(done)


def test_readers_of_a_job_folder_are_told_where_the_shards_are(done: RenderConfig, make_job: MakeJob) -> None:
    with pytest.raises(
        InputError, match=r"is not a shard folder but a render job; its shards are in '.*/train, .*/val'"
    ):
        MultiViewDataset(done.out)
    config = make_job(MESHES, "unpacked")
    config.pack = False
    job.run(config)
    with pytest.raises(InputError, match=r"render job; run `nova3d render pack` on it first"):
        MultiViewDataset(config.out)


def call(*arguments: str) -> int:
    """`scripts/render.py` in this process, where the fake worker is known; returns its exit code."""
    sys.argv = ["render.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "scripts/render.py"), run_name="__main__")
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_every_verb_at_the_command_line(
    make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nova3d import config as configs

    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("PATH", "/nowhere")  # no nvidia-smi
    monkeypatch.setattr("signal.signal", lambda *_: None)
    configs.save(make_job(MESHES), tmp_path / "job.yaml")
    given = ["--config", str(tmp_path / "job.yaml"), "source.path=" + str(tmp_path / "meshes")]
    out = tmp_path / "out"
    expectations = [
        (["status"], 2, "has no plan.json"),
        (["plan"], 0, "objects   10"),
        (["status"], 0, "10 waiting"),
        (["pack"], 2, "10 of 10 planned objects"),
        (["run"], 2, "engine.name 'fake_engine:make' names code to import and run: give --allow-code"),
        (["run", "--allow-code"], 0, f"in {out / 'train'}"),
        (["run", "--allow-code"], 0, "(unchanged)"),
        (["status"], 0, "10 objects planned: 9 done, 1 refused\n  empty_scene                1"),
        (["retry", "--reason", "empty_scene"], 0, "1 objects queued again"),
        (["run", "--allow-code", "size=32"], 2, "size was 24 and is now 32"),
        (["pack", "--incomplete"], 0, "shards: "),
        (["verify", "--deep"], 0, "9 objects in "),
        (["sheet", "--count", "4"], 0, "sheet-00.png"),
        (["attribution"], 0, "ATTRIBUTION.md"),
        (["doctor"], 0, "ready to render"),
        (["doctor", "engine.device=cuda"], 2, "problem(s): GPU: engine.device asks for a GPU"),
        (["run", "engine.light=dark"], 2, "engine.light: 'dark' is not one of studio, flat"),
        (["run", "engine.lite=dark"], 2, "did you mean 'engine.light'"),
    ]
    for arguments, code, words in expectations:
        assert call(arguments[0], *[a for a in arguments[1:] if "=" not in a], *given, *[
            a for a in arguments[1:] if "=" in a]) == code, arguments  # fmt: skip
        shown = capsys.readouterr()
        assert words in shown.out + shown.err, (arguments, shown)
        assert (code == 0) == ("error: " not in shown.err), (arguments, shown)
