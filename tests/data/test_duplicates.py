"""Duplicates: the same thing under another name is found, a different thing is not."""

import hashlib
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nova3d import cameras
from nova3d.data.duplicates import DuplicateConfig, fingerprint, geometry_key, mark_duplicates, mean_colour, view_hashes
from nova3d.rendering.meshes import Mesh, load_mesh
from nova3d.rendering.raster import rasterize

OBJECTS = Path(__file__).parents[2] / "assets" / "objects"


@pytest.fixture(scope="module")
def llama() -> Mesh:
    return load_mesh(OBJECTS / "qua_farm_animals_animated_Llama.glb").normalised()


def turned(mesh: Mesh, degrees: float) -> Mesh:
    """About +Y."""
    angle = torch.deg2rad(torch.tensor(degrees))
    s, c = angle.sin(), angle.cos()
    matrix = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return replace(mesh, vertices=mesh.vertices @ matrix.T, normals=mesh.normals @ matrix.T)


def draw(mesh: Mesh) -> Tensor:
    return rasterize(mesh, cameras.preset("ortho8", 48), 1, "flat").rgba


def row(uid: str, **columns: Any) -> dict[str, Any]:
    return {"uid": uid, "split": "train", **columns}


def test_geometry_keys_ignore_order_place_scale_and_turn(llama: Mesh) -> None:
    key = geometry_key(llama)
    order = torch.randperm(len(llama.vertices), generator=torch.Generator().manual_seed(1))
    inverse = torch.argsort(order)
    shuffled = replace(llama, vertices=llama.vertices[order], faces=inverse[llama.faces].flip(0).roll(1, dims=1))
    assert geometry_key(shuffled) == key
    assert geometry_key(replace(llama, vertices=llama.vertices * 40 + 3)) == key
    assert geometry_key(turned(llama, 33)) == key
    stretched = replace(llama, vertices=llama.vertices * torch.tensor([1, 1.05, 1]))
    assert geometry_key(stretched) != key
    assert geometry_key(replace(llama, faces=llama.faces[:-1])) != key


def test_view_hashes_turn_with_the_object(llama: Mesh) -> None:
    hashes, other = view_hashes(draw(llama)), view_hashes(draw(turned(llama, 90)))
    assert len(hashes) == 8 and all(len(view) == 16 for view in hashes) and len(set(hashes)) > 4
    shifted = other[2:] + other[:2]
    differing = [(int(a, 16) ^ int(b, 16)).bit_count() for a, b in zip(hashes, shifted, strict=True)]
    assert np.mean(differing) < 1


def test_view_hashes_say_where_it_gets_darker() -> None:
    """White on the left, black on the right: only cells where the brightness falls to the right set a bit."""
    rgba = torch.zeros(1, 32, 36, 4)
    rgba[..., 3] = 1
    rgba[:, :, :16, :3] = 1
    (value,) = view_hashes(rgba)
    assert value == "10" * 8  # the fourth cell is white, the fifth is not
    assert view_hashes(torch.zeros(2, 32, 36, 4)) == ["0" * 16] * 2


def test_view_hashes_do_not_see_the_margin(llama: Mesh) -> None:
    rgba = draw(llama)
    wider = torch.nn.functional.pad(rgba, (0, 0, 7, 20, 11, 3))
    assert view_hashes(wider) == view_hashes(rgba)


def test_mean_colour_counts_only_the_surface() -> None:
    rgba = torch.zeros(2, 4, 4, 4)
    rgba[0, 0, 0] = torch.tensor([0.2, 0.4, 0.6, 1.0])
    rgba[1, 0, 0] = torch.tensor([0.4, 0.4, 0.6, 1.0])
    assert mean_colour(rgba) == [0.3, 0.4, 0.6]


def test_fingerprints_have_every_column(llama: Mesh, tmp_path: Path) -> None:
    found = fingerprint(draw(llama), OBJECTS / "qua_farm_animals_animated_Llama.glb")
    assert set(found) == {"views", "colour", "geometry"} and found["geometry"] == geometry_key(llama)
    (tmp_path / "odd.glb").write_bytes(b"only Blender reads this")
    assert fingerprint(draw(llama), tmp_path / "odd.glb")["geometry"] == ""


def test_equal_files_are_duplicates_in_any_order() -> None:
    rows = [row(uid, sha256="f" * 64 if uid in "bdf" else uid) for uid in "abcdef"]
    rows[3]["split"] = "val"
    kept = min("bdf", key=lambda uid: hashlib.sha256(uid.encode()).digest())
    marked = mark_duplicates(rows)
    assert [r["uid"] for r in marked] == list("abcdef") and "dup_of" not in rows[0]
    by = {r["uid"]: r for r in marked}
    assert {uid: r["dup_of"] for uid, r in by.items()} == {
        u: kept if u in "bdf" and u != kept else "" for u in "abcdef"
    }
    assert {by[uid]["split"] for uid in "bdf"} == {"val" if kept == "d" else "train"}
    for seed in range(5):
        mixed = random.Random(seed).sample(rows, len(rows))
        assert {r["uid"]: r for r in mark_duplicates(mixed)} == by


def test_empty_columns_are_not_compared() -> None:
    rows = [row(uid, sha256="", geometry="", views=[], colour=[]) for uid in "ab"] + [row("c"), row("d")]
    assert all(r["dup_of"] == "" and r["group"] == r["uid"] for r in mark_duplicates(rows))


def test_same_pictures_are_duplicates_same_shape_is_a_group(llama: Mesh) -> None:
    mule = load_mesh(OBJECTS / "qub_furniture_pack_Stool.glb").normalised()
    painted = replace(llama, colours=llama.colours * torch.tensor([0.3, 1.0, 0.5]))
    split = replace(llama, faces=torch.cat([llama.faces, llama.faces[:1]]))  # another file, the same pictures
    objects = {"llama": llama, "turned": turned(split, 135), "painted": painted, "stool": mule}
    rows = []
    for uid, mesh in objects.items():
        rgba = draw(mesh)
        columns = {"views": view_hashes(rgba), "colour": mean_colour(rgba), "geometry": geometry_key(mesh)}
        rows.append(row(uid, sha256=uid, **columns))
    by = {r["uid"]: r for r in mark_duplicates(rows)}
    assert by["llama"]["geometry"] != by["turned"]["geometry"] and by["llama"]["geometry"] == by["painted"]["geometry"]
    assert len({by[uid]["group"] for uid in ("llama", "turned", "painted")}) == 1
    kept = min(("llama", "turned"), key=lambda uid: hashlib.sha256(uid.encode()).digest())
    assert {by["llama"]["dup_of"], by["turned"]["dup_of"]} == {"", kept} and by[kept]["dup_of"] == ""
    assert by["painted"]["dup_of"] == "" and by["stool"]["dup_of"] == "" and by["stool"]["group"] == "stool"


def flipped(hashes: list[str], bits: int, rng: np.random.Generator) -> list[str]:
    """The hashes turned by three views, with `bits` of their bits flipped in all."""
    values = [int(view, 16) for view in hashes[3:] + hashes[:3]]
    for bit in rng.choice(64 * len(values), bits, replace=False):
        values[bit // 64] ^= 1 << int(bit % 64)
    return [f"{value:016x}" for value in values]


def test_the_threshold_is_exact() -> None:
    rng = np.random.default_rng(0)
    one = [f"{value:016x}" for value in rng.integers(0, 2**63, 16)]
    for bits, near in ((0, True), (1, True), (31, True), (32, True), (33, False), (60, False)):
        rows = [row("a", views=one), row("b", views=flipped(one, bits, rng))]
        assert (len({r["group"] for r in mark_duplicates(rows)}) == 1) is near, bits
    rows = [row("a", views=one), row("b", views=one[:8])]
    assert (
        len({r["group"] for r in mark_duplicates(rows, DuplicateConfig(view_bits=64))}) == 2
    )  # other rigs are not compared


def test_the_search_misses_no_pair() -> None:
    """Against comparing all pairs."""
    rng = np.random.default_rng(1)
    base = [[f"{value:016x}" for value in rng.integers(0, 2**63, 4)] for _ in range(12)]
    rows = [
        row(f"{i}-{bits}", views=flipped(hashes, bits, rng) if bits else hashes)
        for i, hashes in enumerate(base)
        for bits in (0, 2, 5, 9)
    ]

    def near(a: list[str], b: list[str]) -> bool:
        x, y = [int(v, 16) for v in a], [int(v, 16) for v in b]
        best = min(sum((p ^ q).bit_count() for p, q in zip(x, y[s:] + y[:s], strict=True)) for s in range(4))
        return best <= 8

    parent = {r["uid"]: {r["uid"]} for r in rows}
    for a in rows:
        for b in rows:
            if near(a["views"], b["views"]):
                joined = parent[a["uid"]] | parent[b["uid"]]
                for uid in joined:
                    parent[uid] = joined
    groups = {r["uid"]: r["group"] for r in mark_duplicates(rows)}
    for a in rows:
        same = {uid for uid, group in groups.items() if group == groups[a["uid"]]}
        assert same == parent[a["uid"]]
    assert 12 <= len(set(groups.values())) < len(rows)


def test_thousands_of_rows_take_seconds() -> None:
    rng = np.random.default_rng(2)
    rows = []
    for i in range(1500):
        hashes = [f"{value:016x}" for value in rng.integers(0, 2**63, 16)]
        rows += [row(f"{i}", views=hashes), row(f"{i}x", views=flipped(hashes, 5, rng))]
    began = time.process_time()
    marked = mark_duplicates(rows)
    assert time.process_time() - began < 10  # random hashes are the hardest: their bit counts are all alike
    assert sum(r["dup_of"] != "" for r in marked) == 1500
