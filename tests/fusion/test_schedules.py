import pytest

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.fusion import FusionConfig
from nova3d.fusion.schedules import check, value_at


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.2, 1.0), (0.3, 1.5), (0.4, 2.0), (0.6, 3.0), (0.9, 3.0), (1.0, 3.0)]
)
def test_a_schedule_is_linear_between_its_ends(progress, expected):
    assert value_at([0.2, 1, 3, 0.6], progress) == pytest.approx(expected)


def test_a_number_stays():
    for progress in (0.0, 0.5, 1.0):
        assert value_at(0.25, progress) == 0.25
    assert isinstance(value_at(1, 0.5), float)


def test_a_schedule_may_fall():
    assert value_at([0.0, 1.0, 0.0, 1.0], 0.75) == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", [0, 1.5, [0, 1, 2, 1], (0.1, 1, 0.5, 0.9)])
def test_what_a_weight_may_be(schedule):
    check("loss.mask", schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        "much",
        None,
        True,
        [0.1, 1, 2],
        [0, "a", 1, 1],
        [0.5, 1, 2, 0.5],
        [0.6, 1, 2, 0.5],
        [-0.1, 1, 2, 1],
        [0, 1, 2, 1.1],
        [],
    ],
)
def test_what_it_may_not_be_is_refused_by_its_key(schedule):
    with pytest.raises(InputError, match=r"^loss\.mask: ") as refused:
        check("loss.mask", schedule)
    assert "[start, value, value, stop]" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_config_takes_schedules_and_names_the_bad_key(tmp_path):
    path = tmp_path / "fusion.yaml"
    path.write_text("loss:\n  normal: [0.1, 1.0, 0.5, 0.9]\n")
    config = configs.load(FusionConfig, path)
    assert value_at(config.loss.normal, 0.5) == pytest.approx(0.75)
    for key in ("colour", "normal", "mask", "eikonal", "sparse", "smooth"):
        with pytest.raises(InputError, match=rf"loss\.{key}"):
            configs.load(FusionConfig, path, [f"loss.{key}=[0.9,1,2,0.1]"])
