"""Tables made anew with a tiny random model: folders, resume, failures, arms, verdicts, processes."""

import gc
import hashlib
import json
import math
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trimesh

from nova3d import config as configs
from nova3d.cameras import preset
from nova3d.errors import InputError
from nova3d.evaluation import Protocol
from nova3d.evaluation.baselines import INFLATED
from nova3d.evaluation.mesh_metrics import load_mesh
from nova3d.evaluation.statistics import Interval
from nova3d.experiments import reproduce as module
from nova3d.experiments import study as studies
from nova3d.experiments.config import ReproduceConfig, TableArm
from nova3d.experiments.objects import object_names
from nova3d.experiments.reproduce import NOT_PRINTED, reproduce, verdict
from nova3d.pipeline import Nova3DPipeline
from nova3d.utils import hub
from nova3d.utils.files import replacing
from nova3d.views import ViewSet
from tests.helpers.commands import call_script
from tests.helpers.meshes import write_downloaded_scan
from tests.helpers.networks import tiny_autoencoder, tiny_image_encoder, tiny_unet

ROOT = Path(__file__).resolve().parents[2]
SIZE = 16
pytestmark = pytest.mark.usefixtures("coarse_shapes")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of tiny random networks, 16 views of 16 pixels."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet, vae = tiny_unet(sample_size=8), tiny_autoencoder(sample_size=SIZE)
    parts = (unet.eval(), vae.eval(), tiny_image_encoder())
    folder = tmp_path_factory.mktemp("model")
    Nova3DPipeline(*parts, size=SIZE, sigma_max=80.0, steps=1, guidance_high=1.0).save_pretrained(folder)
    return folder


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Two meshes that are neither centred nor of unit size; one is a scene whose node moves it."""
    folder = tmp_path / "objects"
    folder.mkdir()
    trimesh.creation.box((2.0, 1.0, 0.5)).apply_translation((5, 0, 0)).export(folder / "box.glb")
    scene = trimesh.Scene()
    scene.add_geometry(
        trimesh.creation.icosphere(1, 3.0), transform=trimesh.transformations.translation_matrix((0, 9, 0))
    )
    scene.export(folder / "ball.glb")
    return folder


@pytest.fixture
def config(model: Path, objects: Path, tmp_path: Path) -> ReproduceConfig:
    made = ReproduceConfig(objects=str(objects), out=str(tmp_path / "out"), seeds=[0, 1], arms={"NOVA3D": TableArm()})
    made.sample.model = str(model)
    made.protocol = str(ROOT / "configs/eval/mini.yaml")
    made.protocol_changes = ["kinds=[views]", "hull_cells=0", "views.metrics=[psnr,mask_iou]", "views.cameras=ortho16"]
    made.published = str(ROOT / "configs/eval/published.yaml")
    made.columns = {"psnr": ["psnr"]}
    return made


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Writing the views of `failing.name` raises `failing.error`; `failing.made` lists what was asked for."""
    state = SimpleNamespace(name="ball", error=RuntimeError("no views today"), made=[])
    true = studies.write_views

    def write(pipeline, reference, folder, sample, generator):
        state.made.append((reference.name, generator.folder))
        if reference.name == state.name:
            raise state.error
        true(pipeline, reference, folder, sample, generator)

    monkeypatch.setattr(studies, "write_views", write)
    return state


def test_a_table_is_made_once_and_the_same_call_goes_on(
    config: ReproduceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, str]] = []
    report, path = reproduce(config, progress=lambda *call: told.append(call))
    out = Path(config.out)
    for seed in (0, 1):
        assert {p.name for p in (out / f"views/seed{seed}").iterdir()} == {"box", "ball"}
    assert (6, 6, "making views and meshes") in told
    for name in ("box", "ball"):  # the reference mesh is in the frame of its views
        extents = load_mesh(out / "references" / name / "mesh.glb").bounds
        assert abs(extents.sum(axis=0)).max() < 1e-5 and abs((extents[1] - extents[0]).max() - 1) < 1e-5
    assert set(report.tables["NOVA3D"].per_seed) == {0, 1} and not report.tables["NOVA3D"].failures
    said = [json.loads((out / f"views/seed{k}/box/record.json").read_text())["task_iou"] for k in (0, 1)]
    fifteen = [sum(views[1:]) / 15 for views in said]  # the input view is not scored
    assert report.tables["NOVA3D"].rows["box"]["task_iou"] == pytest.approx(sum(fifteen) / 2)
    entry = json.loads((path.parent / "report.json").read_text())
    assert entry["beside_the_paper"][0]["paper"] == NOT_PRINTED and NOT_PRINTED in path.read_text()

    rows = {row.metric: row.result for row in report.to_baselines["inflated"].rows}
    floor = report.tables["NOVA3D"].baselines[INFLATED]
    assert rows["mask_iou"].baseline_mean == pytest.approx(sum(row["mask_iou"] for row in floor.values()) / 2)
    assert "## Difference to the inflated outline" in path.read_text()
    assert (path.parent / "inflated" / "comparison.json").is_file()

    assert ": not stated" not in path.read_text() and "seeds: 0, 1  " in path.read_text()

    (out / "views/seed1/box").rename(out / "views/seed1/.gone")
    made = []
    true = studies.write_views
    monkeypatch.setattr(studies, "write_views", lambda *a: (made.append(a[1].name), true(*a))[1])
    again, _ = reproduce(config)
    assert made == ["box"] and again.tables["NOVA3D"].rows == report.tables["NOVA3D"].rows


def test_a_failed_object_is_scored_as_nothing_with_its_reason(
    config: ReproduceConfig, failing: SimpleNamespace
) -> None:
    table = reproduce(config)[0].tables["NOVA3D"]
    assert set(table.failures) == {"ball"} and "RuntimeError: no views today" in table.failures["ball"]
    assert table.rows["ball"]["task_iou"] == 0 < table.rows["box"]["task_iou"]
    assert table.rows["ball"]["mask_iou"] == 0 and table.rows["ball"]["psnr"] == pytest.approx(
        table.baselines["all-white image"]["ball"]["psnr"]
    )
    assert "(1 of 2 failed" in table.markdown()
    failing.made.clear()
    reproduce(config)
    assert failing.made == []
    failing.name = ""
    mended = reproduce(config, retry=True)[0].tables["NOVA3D"]
    assert failing.made == [("ball", "seed0"), ("ball", "seed1")] and not mended.failures


def test_nothing_to_score_and_what_the_machine_lacks_end_the_run(
    config: ReproduceConfig, failing: SimpleNamespace
) -> None:
    config.names = ["ball"]
    with pytest.raises(InputError, match=r"every object .* failed; the first one: ball: RuntimeError: no views today"):
        reproduce(config)
    failing.error = OSError(28, "No space left on device")
    with pytest.raises(InputError, match="No space left"):
        reproduce(config, retry=True)
    assert not list(Path(config.out).rglob("failures/**/*.json"))


def test_an_interrupted_object_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "views/cup") as folder:
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert list((tmp_path / "views").iterdir()) == []


def test_a_folder_of_another_study_is_refused(config: ReproduceConfig) -> None:
    reproduce(config)
    config.sample.steps = 2
    with pytest.raises(InputError, match="views/seed0' was made with another sampling"):
        reproduce(config)


def test_an_object_that_has_changed_is_not_scored_against_its_former_views(
    config: ReproduceConfig, objects: Path
) -> None:
    study, _ = module.plan(config)
    (study.references / "box").mkdir(parents=True)
    studies.check_study(study)
    trimesh.creation.box((2.0, 1.0, 0.7)).export(objects / "ball.glb")  # was not drawn yet
    studies.check_study(study)
    trimesh.creation.box((2.0, 1.0, 0.7)).export(objects / "box.glb")
    with pytest.raises(InputError, match=r"object 'box' of '.*' has changed since .* was made; give another out"):
        studies.check_study(study)
    entry = json.loads((study.out / "study.json").read_text())
    del entry["objects"]  # as an earlier version wrote it
    (study.out / "study.json").write_text(json.dumps(entry))
    studies.check_study(study)


def test_cameras_of_another_rig_are_refused_and_the_size_is_the_models(config: ReproduceConfig) -> None:
    study, _ = module.plan(config)
    ours = module.fit_to_model(Protocol(), study)
    assert ours.views.size == SIZE and ours.hash != Protocol().hash
    config.protocol_changes[-1] = "views.cameras=syncdreamer16"
    with pytest.raises(InputError, match=r"cameras are ortho16, the protocol 'mini' scores syncdreamer16"):
        reproduce(config)


def test_arms_of_the_fusion_share_the_views_and_are_compared(
    config: ReproduceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fused(views, settings, device):
        seen.append((settings.conflict.mode, settings.pose.enabled))
        radius = 0.5 if settings.conflict.mode == "mlp" else 0.3
        solid = trimesh.creation.icosphere(1, radius)
        return SimpleNamespace(timings={}, report={}, save=lambda path, entry: solid.export(path))

    monkeypatch.setattr(studies, "reconstruct", fused)
    config.seeds, config.fusion = [0], str(ROOT / "configs/fusion/cpu.yaml")
    config.arms, config.baseline = {"full": TableArm(), "no_conflict": TableArm(fusion=["conflict.mode=none"])}, "full"
    config.protocol_changes = [
        "kinds=[meshes]",
        "hull_cells=0",
        "meshes.surface_samples=500",
        "meshes.ious=[iou16_flood]",
    ]
    config.columns = {"chamfer": ["cd_l2_area100k", "chamfer"]}
    report, _ = reproduce(config)
    assert sorted(seen) == [("mlp", True)] * 2 + [("none", True)] * 2
    out = Path(config.out)
    assert (out / "views/seed0/box").is_dir() and (out / "meshes/no_conflict/seed0/box/mesh.glb").is_file()
    ious = {name: table.mean()["iou16_flood"] for name, table in report.tables.items()}
    assert ious["full"] > ious["no_conflict"]
    assert report.comparison is not None and {row.method for row in report.comparison.rows} == {"no_conflict"}


def test_a_model_may_be_a_hub_id(config: ReproduceConfig, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "download", lambda name, *_: asked.append(name) or model)
    config.sample.model = "owner/name"
    study, _ = module.plan(config)
    assert (study.rig, study.size) == ("ortho16", SIZE) and set(asked) == {"owner/name"}
    assert {generator.model for generator in study.generators} == {"owner/name"}
    studies.check_study(study)
    config.arms = {"here": TableArm(model="unet"), "there": TableArm()}
    monkeypatch.setattr(studies, "model_rig", lambda _: ("ortho16", SIZE))
    study, _ = module.plan(config)
    assert {generator.model for generator in study.generators} == {"owner/name", str(model / "unet")}


def test_the_model_is_out_of_memory_while_meshes_are_fused(
    config: ReproduceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, alive, true = [], [], studies.load_pipeline

    def load(*arguments):
        pipeline = true(*arguments)
        loaded.append(weakref.ref(pipeline.unet))
        return pipeline

    def fuse(views, folder, *_):
        gc.collect()
        alive.append([network() is not None for network in loaded])

    monkeypatch.setattr(studies, "load_pipeline", load)
    monkeypatch.setattr(studies, "write_mesh", fuse)
    config.fusion, config.seeds, config.names = str(ROOT / "configs/fusion/cpu.yaml"), [0], ["box"]
    study, _ = module.plan(config)
    studies.check_study(study)
    studies.make(study, 0, 1, "cpu", lambda: None)
    assert alive == [[False]]


def test_a_failed_sampling_is_a_failed_mesh(
    config: ReproduceConfig, failing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    solid = trimesh.creation.icosphere(1, 0.5)
    result = SimpleNamespace(timings={}, report={}, save=lambda path, entry: solid.export(path))
    monkeypatch.setattr(studies, "reconstruct", lambda *a: result)
    config.seeds, config.fusion = [0], str(ROOT / "configs/fusion/cpu.yaml")
    config.protocol_changes = [
        "kinds=[meshes]",
        "hull_cells=0",
        "meshes.surface_samples=500",
        "meshes.ious=[iou16_flood]",
    ]
    table = reproduce(config)[0].tables["NOVA3D"]
    assert "there are no views" in table.failures["ball"] and table.rows["ball"]["iou16_flood"] < 0.1


@pytest.mark.parametrize(
    ("low", "high", "lower", "said"),
    [
        (20.0, 24.0, False, "the interval contains the paper's mean"),
        (23.9, 25.0, False, "above the paper's mean (better)"),
        (17.0, 18.0, False, "below the paper's mean (worse)"),
        (23.9, 25.0, True, "above the paper's mean (worse)"),
        (17.0, 18.0, True, "below the paper's mean (better)"),
        (math.nan, math.nan, False, "too few objects (8) for an interval"),
    ],
)
def test_verdicts(low: float, high: float, lower: bool, said: str) -> None:
    middle = 21.0 if math.isnan(low) else (low + high) / 2
    assert verdict(Interval(middle, low, high, 8), 23.87, lower) == said


def test_a_number_that_is_not_printed_gets_no_verdict() -> None:
    assert verdict(Interval(21.0, 20.0, 22.0, 8), math.nan, False) == "-"


@pytest.mark.parametrize("path", sorted((ROOT / "configs/reproduce").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_table_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = configs.load(ReproduceConfig, path, ["objects=assets/objects"])
    assert settings.table == path.stem and settings.arms and settings.columns
    source = module._paper(settings)
    assert (source is None) == (path.stem in ("mesh", "texture", "fusion-ablation"))
    protocol = configs.load(Protocol, settings.protocol, settings.protocol_changes)
    assert len(protocol.kinds) == 1
    if path.stem != "attention-ablation":  # its model folder is made by a training
        study, places = module.plan(settings)
        assert bool(study.fusions) == (protocol.kinds != ("views",)) and set(places) == set(settings.arms)


def test_the_script_refuses_bad_input_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["table1", "--objects", tmp_path / "none", "seeds=[3]", "--device", "cpu"]
    assert call_script(monkeypatch, "reproduce", *arguments) == 2
    assert "none' does not exist" in capsys.readouterr().err


def test_every_object_of_a_study_starts_from_its_own_noise_the_same_in_every_study() -> None:
    seeds = {(seed, name): studies.object_seed(seed, name) for seed in (0, 1) for name in ("box", "ball", "cup")}
    assert len(set(seeds.values())) == 6 and all(0 <= value < 2**32 for value in seeds.values())
    assert studies.object_seed(0, "box") == int(hashlib.sha256(b"0 box").hexdigest()[:8], 16)


def test_empty_texts_of_earlier_files_are_read_as_unset(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("objects: x\narms: {ours: {model: '', paper: ''}}\n")
    assert configs.load(ReproduceConfig, path).arms == {"ours": TableArm(model=None, paper=None)}


def test_scans_are_taken_as_they_are_downloaded(tmp_path: Path) -> None:
    write_downloaded_scan(tmp_path / "scans" / "Tall.Box")
    assert object_names(tmp_path / "scans", []) == ("Tall_Box",)
    studies._write_truth(tmp_path / "scans", "Tall_Box", preset("ortho4", 48), tmp_path / "truth")
    views = ViewSet.load(tmp_path / "truth")
    rows, columns = torch.nonzero(views.mask[0] > 0.5, as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (32, 8)  # upright, longest side 1
    assert (views.rgb[0][views.mask[0] == 1].mean(dim=0) * 255).tolist() == pytest.approx([200, 10, 30], abs=60)
    with pytest.raises(InputError, match=r"has no object Red"):
        object_names(tmp_path / "scans", ["Red"])
