"""Checkpoints: all or nothing, the last few kept, damaged and foreign ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nova3d.errors import InputError
from nova3d.training.checkpoint import (
    PARTS,
    Collectives,
    check_space,
    list_checkpoints,
    load_checkpoint,
    read_states,
    save_checkpoint,
    write_states,
)
from nova3d.training.logs import StatsLog


def writer(model: nn.Module) -> Callable[[Path], None]:
    return lambda folder: write_states(folder, {"model": model.state_dict()})


def reader(model: nn.Module) -> Callable[[Path], None]:
    return lambda folder: read_states(folder, {"model": model})


def test_checkpoints_keep_two_and_ignore_half_written_ones(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, float(step))
        save_checkpoint(tmp_path, step, writer(model), {"model": {"width": 2}})
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    half = tmp_path / "checkpoints/step-00000009.part"
    half.mkdir()
    (half / "parts.pt").write_bytes(b"half")
    fresh = nn.Linear(2, 2)
    assert load_checkpoint(tmp_path, reader(fresh), {"model": {"width": 2}}) == 3
    assert torch.equal(fresh.weight, model.weight)
    assert load_checkpoint(tmp_path / "none", reader(fresh), {}) == 0
    assert load_checkpoint(tmp_path, reader(fresh), {"model": {"width": 2}}, "never") == 0
    older = str(tmp_path / "checkpoints/step-00000002")
    assert load_checkpoint(tmp_path, reader(fresh), {"model": {"width": 2}}, older) == 2
    assert fresh.weight[0, 0] == 2.0


@pytest.mark.parametrize("content", ["cut", "garbage", "empty", "no progress"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(8, 8)
    for step in (1, 2):
        nn.init.constant_(model.weight, float(step))
        path = save_checkpoint(tmp_path, step, writer(model), {})
    file = path / "parts.pt"
    whole = file.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "garbage": b"\x00" * len(whole), "empty": b""}
    if content == "no progress":
        (path / "progress.json").unlink()
    else:
        file.write_bytes(damaged[content])
    fresh = nn.Linear(8, 8)
    assert load_checkpoint(tmp_path, reader(fresh), {}) == 1
    assert fresh.weight[0, 0] == 1.0
    assert "step-00000002' is truncated or damaged" in caplog.text and "the one before is taken" in caplog.text
    (tmp_path / "checkpoints/step-00000001/parts.pt").write_bytes(b"")
    with pytest.raises(InputError, match="there is none before it"):
        load_checkpoint(tmp_path, reader(fresh), {})
    save_checkpoint(tmp_path, 1, writer(model), {}, keep=1)  # what the run goes on from is never the damaged one
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert load_checkpoint(tmp_path, reader(fresh), {}) == 1


def test_a_checkpoint_of_another_model_or_other_data_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, writer(nn.Linear(2, 2)), {"model": {"width": 2, "arm": "gta"}, "shards": "a"})
    for identity, message in (
        ({"model": {"width": 2, "arm": "gta"}, "shards": "b"}, r"another 'shards' \(a, this run has b\)"),
        ({"model": {"width": 2, "arm": "none"}, "shards": "a"}, r"another 'model.arm' \(gta, this run has none\)"),
    ):
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path, reader(nn.Linear(2, 2)), identity)


def test_an_unwritable_folder_and_a_full_disk_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write checkpoint"):
        save_checkpoint(tmp_path / "file", 1, writer(nn.Linear(1, 1)), {})
    with pytest.raises(InputError, match="cannot be written"):
        StatsLog(tmp_path / "file" / "sub" / "stats.jsonl", 0)

    def full(folder: Path) -> None:
        (folder / "a").write_text("x")
        raise OSError(28, "No space left on device")

    save_checkpoint(tmp_path, 1, writer(nn.Linear(1, 1)), {})
    with pytest.raises(InputError, match="No space left on device; older checkpoints are kept"):
        save_checkpoint(tmp_path, 2, full, {})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    with pytest.raises(InputError, match=r"lacks .* GB for its checkpoints"):
        check_space(tmp_path, 10**18, 2)
    check_space(tmp_path, 1, 2)


def test_a_full_disk_below_torch_s_file_writer_is_an_input_error(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        (folder / PARTS).symlink_to("/dev/full")
        write_states(folder, {"model": nn.Linear(1, 1).state_dict()})

    with pytest.raises(InputError, match=r"cannot write checkpoint .*; older checkpoints are kept"):
        save_checkpoint(tmp_path, 1, full, {})


def test_errors_of_gpus_and_of_other_processes_are_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    def plain(folder: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "_save", fail)
            write_states(folder, {})

    def out_of_memory(_: Path) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def disconnected() -> None:
        raise RuntimeError("connection closed by peer")

    with pytest.raises(InputError, match=r"cannot write checkpoint .*PytorchStreamWriter"):
        save_checkpoint(tmp_path, 1, plain, {})
    with pytest.raises(torch.OutOfMemoryError):
        save_checkpoint(tmp_path, 1, out_of_memory, {})
    with pytest.raises(RuntimeError, match=r"^connection closed"):  # as gloo says it while states are gathered
        save_checkpoint(tmp_path, 1, lambda _: disconnected(), {})
    with pytest.raises(RuntimeError, match=r"^connection closed"):
        save_checkpoint(tmp_path, 1, writer(nn.Linear(1, 1)), {}, collectives=Collectives(barrier=disconnected))
    save_checkpoint(tmp_path, 1, writer(nn.Linear(1, 1)), {})
    with pytest.raises(torch.OutOfMemoryError):
        load_checkpoint(tmp_path, out_of_memory, {})


def test_a_checkpoint_of_an_earlier_version_lacks_keys_that_had_one_value_then(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    save_checkpoint(tmp_path, 1, writer(model), {"seed": 0})
    now = {"seed": 0, "optimizer": "adamw", "condition": "picture", "model": {"row_attention": False}, "start": ""}
    assert load_checkpoint(tmp_path, reader(model), now) == 1
    with pytest.raises(InputError, match=r"another 'optimizer' \(adamw, this run has muon\)"):
        load_checkpoint(tmp_path, reader(model), now | {"optimizer": "muon"})
