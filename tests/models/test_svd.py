"""Loading SVD in diffusers' layout: the function at step 0, the account of the keys, and the sources."""

import json
import re
from copy import deepcopy
from typing import Any

import pytest
import torch

from nova3d.models import NovaUNet, svd_files
from nova3d.models.svd import SVD_FPS_ID, SVD_MOTION_ID, LoadReport, inspect_svd, load_svd
from tests.helpers.commands import call_script

WEIGHTS = "diffusion_pytorch_model.safetensors"


@torch.no_grad()
@pytest.mark.parametrize("id_mode", ["fold", "constant"])
@pytest.mark.parametrize("alignment", ["none", "gta", "cross_domain"])
def test_step_zero_is_svd(svd, id_mode: str, alignment: str) -> None:
    stock, folder = svd
    ours, _ = NovaUNet.from_svd(folder, id_mode=id_mode, alignment=alignment)
    x = torch.randn(2, 2, 3, 8, 8, 8)
    embeds, c_noise, aug = torch.randn(2, 1, 24), torch.tensor([-0.4, 0.9]), torch.tensor([0.02, 0.3])
    out = ours(x, c_noise, embeds, aug, torch.randn(2, 3, 2)).sample
    ids = torch.stack([torch.full((2,), SVD_FPS_ID), torch.full((2,), SVD_MOTION_ID), aug], dim=1)
    for task in range(2):
        expected = stock(x[:, task], c_noise, embeds, ids).sample
        torch.testing.assert_close(out[:, task], expected, rtol=1e-4, atol=2e-5)


def test_report_accounts_for_every_key(svd) -> None:
    stock, folder = svd
    ours, report = load_svd(NovaUNet, folder, alignment="gta")
    assert report.reshaped == ["add_embedding.linear_1.weight"]
    assert report.derived == ["add_embedding.linear_1.bias"]
    assert not report.unused
    accounted = report.copied + report.new + report.reshaped + report.derived
    assert sorted(accounted) == sorted(ours.state_dict())
    assert set(report.copied) | {*report.reshaped, *report.derived} == set(stock.state_dict())
    assert sorted(report.new) == sorted(ours.new_parameter_names)
    assert report.parameters == sum(p.numel() for p in ours.parameters())
    assert report.stored == {"F32": len(stock.state_dict())}
    assert f"{len(report.new)} new" in str(report)
    loaded, original = ours.state_dict(), stock.state_dict()
    assert all(torch.equal(loaded[name], original[name]) for name in report.copied)


def test_new_modules_start_as_constructed(svd, svd_sizes) -> None:
    ours, _ = load_svd(NovaUNet, svd[1], alignment="gta", alignment_init="random", row_attention=True)
    sizes = {k: v for k, v in svd_sizes.items() if not k.startswith("projection")}
    fresh = NovaUNet(**sizes, alignment_init="random", row_attention=True)
    for name in ours.new_parameter_names:
        value, reference = ours.get_parameter(name).detach(), fresh.get_parameter(name).detach()
        assert bool(value.any()) == bool(reference.any()), name  # the outputs are zero, nothing else
        assert float(value.std()) == pytest.approx(float(reference.std()), rel=0.25, abs=1e-6), name


def test_what_is_frozen_by_construction_stays_frozen(svd) -> None:
    ours, _ = load_svd(NovaUNet, svd[1])
    block = ours.down_blocks[0].attentions[0].transformer_blocks[0]
    assert not block.attn2.to_q.weight.requires_grad
    assert block.attn1.to_q.weight.requires_grad


def test_inspection_gives_the_loader_s_account_without_reading_a_tensor(svd, monkeypatch, tmp_path) -> None:
    _, report = load_svd(NovaUNet, svd[1], alignment="gta_spatial", id_mode="constant")
    forbid_reading(monkeypatch)
    assert inspect_svd(NovaUNet, svd[1], alignment="gta_spatial", id_mode="constant") == report
    with pytest.raises(AssertionError, match="a tensor was read"):
        load_svd(NovaUNet, svd[1])
    report.save(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == report.to_dict()
    assert LoadReport(**stored) == report


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Headers:
        def __init__(self, *arguments: Any, **named: Any):
            self.file = opened(*arguments, **named)

        def __enter__(self) -> "Headers":
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def keys(self) -> list[str]:
            return self.file.keys()

        def get_slice(self, name: str) -> Any:
            view = self.file.get_slice(name)
            return type("Header", (), {"get_shape": view.get_shape, "get_dtype": view.get_dtype})()

        def get_tensor(self, name: str) -> None:
            raise AssertionError(f"a tensor was read: {name}")

    opened = svd_files.safe_open
    monkeypatch.setattr(svd_files, "safe_open", Headers)


def test_half_precision_variant(svd, tmp_path, refused) -> None:
    stock, _ = svd
    deepcopy(stock).half().save_pretrained(tmp_path / "unet", variant="fp16", safe_serialization=True)
    ours, report = load_svd(NovaUNet, tmp_path, variant="fp16")
    assert report.source.endswith("fp16.safetensors") and set(report.stored) == {"F16"}
    assert ours.dtype == torch.float32
    assert torch.equal(ours.conv_in.weight, stock.conv_in.weight.half().float())
    assert re.search(r"lacks diffusion_pytorch_model\.safetensors; it has .*fp16.*name that variant", refused(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_model_has_the_type_asked_for(svd, dtype: torch.dtype) -> None:
    ours, _ = NovaUNet.from_svd(svd[1], dtype=dtype)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert torch.equal(ours.conv_in.weight, svd[0].conv_in.weight.to(dtype))


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_are_one_file(svd, tmp_path, variant: str, refused) -> None:
    stock, folder = svd
    stock.save_pretrained(tmp_path / "unet", max_shard_size="1MB", variant=variant or None)
    shards = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    ours, report = load_svd(NovaUNet, tmp_path, variant=variant)
    whole, expected = load_svd(NovaUNet, folder)
    assert report.copied == expected.copied and report.source.endswith(".json")
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items() if name in report.copied)
    shards[1].unlink()
    assert f"lacks the shard {shards[1].name}" in refused(tmp_path, variant=variant)


def test_the_model_does_not_hang_on_the_file(copy) -> None:
    ours, _ = load_svd(NovaUNet, copy)
    before = ours.conv_in.weight.clone()
    path = copy / "unet" / WEIGHTS
    path.write_bytes(b"\0" * path.stat().st_size)  # in place: a mapping of the file would see it
    assert torch.equal(ours.conv_in.weight, before)


def test_a_hub_id_fetches_what_is_needed_only(svd, monkeypatch) -> None:
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(svd[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    _, report = load_svd(NovaUNet, "someone/some-svd", variant="")
    assert report.copied and [name for name, _ in asked] == ["someone/some-svd"]
    patterns = asked[0][1]
    assert f"unet/{WEIGHTS}" in patterns and "unet/config.json" in patterns
    assert all(p.startswith("unet/") and "fp16" not in p for p in patterns)


def test_the_hub_s_errors_are_one_line(monkeypatch, refused) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("cannot reach the hub\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert "no network" in refused("someone/some-svd")
    assert "does not exist" in refused("some/where/svd.safetensors")
    assert "does not exist" in refused("/nowhere/svd")


def test_the_script_prints_and_writes_the_account(svd, monkeypatch, capsys, tmp_path) -> None:
    file = tmp_path / "account.json"
    forbid_reading(monkeypatch)
    arguments = [svd[1], "--unet-only", "--keys", "--json", file]
    assert call_script(monkeypatch, "inspect_weights", *arguments) == 0
    printed = capsys.readouterr().out
    report = inspect_svd(NovaUNet, svd[1])
    assert printed.startswith(str(report))
    assert "reshaped  add_embedding.linear_1.weight" in printed
    assert json.loads(file.read_text()) == report.to_dict()
    assert call_script(monkeypatch, "inspect_weights", tmp_path) == 2
