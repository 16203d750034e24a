from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from nova3d import config
from nova3d.errors import InputError
from nova3d.evaluation import Protocol
from nova3d.evaluation.protocols import MeshRules, TextureRules, ViewRules

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for path in (ROOT / "configs/eval").glob("*.yaml") if path.stem != "published")


def other(value):
    """A different, valid value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2
        case _:
            return {"nova3d-el0": "x", "refuse": "score", "blended": "hard", "shared": "unit"}.get(value, "persp16")


TUPLES = {
    "kinds": ("textures",),
    "objects": ("cup",),
    "scored": (1,),
    "metrics": ("psnr",),
    "shifts": (2,),
    "alignments": ("bbox",),
    "points": ("visible16",),
    "f_score_thresholds": (0.03,),
    "ious": ("iou64_mesh2sdf",),
}


def test_the_hash_changes_with_every_field_and_with_nothing_else():
    base = Protocol()
    changed = []
    for section, rules in ((None, base), ("views", base.views), ("meshes", base.meshes), ("textures", base.textures)):
        for entry in fields(rules):
            value = getattr(rules, entry.name)
            if isinstance(value, (ViewRules, MeshRules, TextureRules)):
                continue
            new = replace(rules, **{entry.name: TUPLES[entry.name] if isinstance(value, tuple) else other(value)})
            changed.append(replace(base, **{section: new}) if section else new)
    assert len(changed) > 25
    assert len({protocol.hash for protocol in [base, *changed]}) == len(changed) + 1
    assert replace(base).hash == base.hash


def test_the_shipped_protocols_are_those_of_the_documentation():
    named = {path.stem for path in SHIPPED}
    assert named >= {
        "nova3d-el0",
        "syncdreamer-v1",
        "eschernet-v1",
        "mesh-sync",
        "mesh-aligned",
        "tex-env32",
        "tex-sphere",
    }
    page = (ROOT / "docs/reference/protocols.md").read_text()
    for path in SHIPPED:
        protocol = config.load(Protocol, path)
        assert protocol.name == path.stem
        assert f"`{protocol.name}` ({protocol.hash})" in page, "the page must state today's hash"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_protocol_spells_out_every_choice_of_what_it_scores(path):
    given = yaml.safe_load(path.read_text())
    for kind, rules in (("views", ViewRules), ("meshes", MeshRules), ("textures", TextureRules)):
        if kind in given["kinds"]:
            assert set(given[kind]) == {entry.name for entry in fields(rules)}
        else:
            assert kind not in given


def test_the_default_protocol_is_the_shipped_default():
    assert config.load(Protocol, ROOT / "configs/eval/nova3d-el0.yaml") == Protocol()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kinds=[]", "kinds is empty"),
        ("kinds=[mesh]", "kinds: 'mesh' is not one of views, meshes, textures"),
        ("failures=skip", "failures: 'skip' is not one of refuse, score"),
        ("hull_cells=-1", "hull_cells"),
        ("views.metrics=[psnrr]", "views.metrics: 'psnrr' is not one of psnr, "),
        ("views.cameras=ortho", "preset 'ortho' is not one of"),
        ("views.background=2", "grey level"),
        ("views.shifts=[-1]", "must not be negative"),
        ("views.edges=soft", "'soft' is not one of blended, hard"),
        ("meshes.ious=[iou0_flood]", "'iou0_flood' is not iou<R>_flood"),
        ("meshes.ious=[iou128_mesh2sdf]", "'iou128_mesh2sdf' is not"),
        ("meshes.alignments=[yaw]", "'yaw' is not one of known, bbox"),
        ("meshes.frame=none", "'none' is not one of shared, unit"),
        ("meshes.points=[vertices]", "'vertices' is not one of area, visible16"),
        ("meshes.surface_samples=0", "must be positive"),
        ("meshes.f_score_thresholds=[0.0]", "must be positive"),
        ("textures.size=0", "at least 1"),
        ("textures.cameras=sphere", "preset 'sphere' is not one of"),
        ("textures.metrics=[psnrr]", "textures.metrics: 'psnrr'"),
        ("view.size=3", r"did you mean 'views\.size'"),
    ],
)
def test_bad_values_are_refused_by_name(override, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[").replace("(", r"\(")):
        config.load(Protocol, None, [override])


def test_zeros_of_earlier_files_are_read_as_unset_and_leave_the_hash() -> None:
    zeros = ["views.count=0", "views.size=0", "hull_cells=0"]
    nulls = ["views.count=null", "views.size=null", "hull_cells=null"]
    old, new = config.load(Protocol, overrides=zeros), config.load(Protocol, overrides=nulls)
    assert (old.views.count, old.views.size, old.hull_cells) == (None, None, None)
    in_python = Protocol(hull_cells=0, views=ViewRules(count=0, size=0))
    assert old == new and old.hash == in_python.hash != Protocol().hash
