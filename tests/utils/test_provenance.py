import hashlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nova3d
from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.generation import GenerateConfig
from nova3d.utils import provenance

GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


def commit_seen_by(root: Path) -> str:
    """What provenance.commit() says when the package lies under `root`."""
    program = "from nova3d.utils import provenance; print(provenance.commit())"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's ground floor outside any checkout."""
    package = tmp_path / "nova3d"
    (package / "utils").mkdir(parents=True)
    for name in (
        "__init__.py",
        "errors.py",
        "utils/__init__.py",
        "utils/files.py",
        "utils/lazy.py",
        "utils/provenance.py",
        "utils/suffixes.py",
    ):
        shutil.copy(Path(nova3d.__file__).parent / name, package / name)
    return tmp_path


def test_commit_of_a_checkout_clean_and_changed(copy: Path) -> None:
    assert commit_seen_by(copy) == "unknown"
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*GIT, *arguments], cwd=copy, check=True)
    done = subprocess.run([*GIT, "rev-parse", "HEAD"], cwd=copy, capture_output=True, text=True, check=True)
    head = done.stdout.strip()
    assert len(head) == 40
    (copy / "untracked.txt").write_text("outputs do not make a checkout dirty")
    assert commit_seen_by(copy) == head
    with (copy / "nova3d/__init__.py").open("a") as file:
        file.write("\n")
    assert commit_seen_by(copy) == f"{head}-dirty"


def test_commit_is_unknown_before_the_first_one(copy: Path) -> None:
    subprocess.run([*GIT, "init", "-q"], cwd=copy, check=True)
    assert commit_seen_by(copy) == "unknown"


def test_record_takes_a_config_as_it_stands_or_as_a_dict() -> None:
    config = GenerateConfig()
    plain = configs.to_dict(config)
    of_instance, of_dict = provenance.record("generate", config), provenance.record("generate", plain)
    assert json.loads(json.dumps(of_instance["config"])) == plain == of_dict["config"]
    assert of_instance["config_hash"] == of_dict["config_hash"] == provenance.hash_json(plain)
    assert provenance.record("sample")["config"] == {}


def test_record_is_json_and_says_what_made_an_output(tmp_path: Path) -> None:
    entry = provenance.record("sample", {"steps": 25}, seed=7, weights="abc")
    assert entry["stage"] == "sample"
    assert entry["nova3d"] == nova3d.__version__
    assert entry["seed"] == 7
    assert entry["config"] == {"steps": 25}
    assert "torch" in entry["versions"]
    assert json.loads(provenance.write(tmp_path, entry).read_text()) == entry


def test_config_hash_depends_on_values_and_not_on_order() -> None:
    assert provenance.hash_json({"a": 1, "b": 2}) == provenance.hash_json({"b": 2, "a": 1})
    assert provenance.hash_json({"a": 1}) != provenance.hash_json({"a": 2})
    assert len(provenance.hash_json({})) == 16


def test_a_number_made_of_a_text_is_the_beginning_of_its_sha256() -> None:
    """Seeds, splits and orders of finished data sets and studies follow from these values."""
    # printf 'cup' | sha256sum, and the like
    digest = "c6171781d65f3ccce1135e3c89850cfbaa7f332fd72a1f8f6a841fbcf7fd362a"
    assert provenance.stable_hash("cup") == int(digest, 16)
    assert provenance.stable_hash("cup", 8) == int(digest[:2], 16)
    assert provenance.stable_hash("7 cup", 32) == 0xAB10B2B4
    assert provenance.stable_hash("split cup", 64) == 0x023D310D2C76093E
    names = [f"ü{i}" for i in range(20)]
    assert sorted(names, key=provenance.stable_hash) == sorted(
        names, key=lambda name: hashlib.sha256(name.encode()).digest()
    )


def test_hash_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nova")
    assert provenance.hash_file(tmp_path / "x") == hashlib.sha256(b"nova").hexdigest()


def test_hash_of_tensors_by_hand():
    import hashlib
    import struct

    expected = hashlib.sha256(b"a (1,) " + struct.pack("<f", 2.0) + b"b () " + struct.pack("<f", 3.0)).hexdigest()[:16]
    assert provenance.hash_tensors({"b": torch.tensor(3.0), "a": torch.tensor([2.0], dtype=torch.float64)}) == expected


def test_checksums(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no SHA256SUMS"):
        provenance.verify_checksums(tmp_path)
    (tmp_path / "unet").mkdir()
    for name in ("unet/a.bin", "b.json"):
        (tmp_path / name).write_bytes(name.encode())
    lines = [f"{hashlib.sha256(n.encode()).hexdigest()}  {n}" for n in ("unet/a.bin", "b.json")]
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    assert provenance.verify_checksums(tmp_path) == []
    (tmp_path / "unet/a.bin").write_bytes(b"changed")
    (tmp_path / "b.json").unlink()
    first, second = provenance.verify_checksums(tmp_path)
    assert "a.bin differs" in first
    assert "b.json is missing" in second
    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1"):
        provenance.verify_checksums(tmp_path)


def test_a_record_has_no_command_no_kernel_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/generate.py", "--token", "hf_secret"])
    config = {"out": "/home/me/owl #1", "model": "~/models/mini", "hub": "owner/name", "short": "assets/images/owl.png"}
    entry = provenance.record(
        "sample", config, image={"file": "C:\\Users\\me\\owl.png"}, said=["cannot read '/home/me/a.png', see /etc/x"]
    )
    text = json.dumps(entry)
    assert "home" not in text and "Users" not in text and "secret" not in text and platform.release() not in text
    assert entry["config"] == {
        "out": "owl #1",
        "model": "mini",
        "hub": "owner/name",
        "short": "assets/images/owl.png",
    }
    assert entry["image"] == {"file": "owl.png"} and entry["said"] == ["cannot read 'a.png', see x"]
    assert entry["config_hash"] == provenance.hash_json(config)
    kept = provenance.without_folders("https://example.org/a/b, 1/2 and a/b")
    assert kept == "https://example.org/a/b, 1/2 and a/b"
