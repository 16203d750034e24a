import pytest

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.fusion import FusionConfig
from nova3d.fusion.config import check_weight
from nova3d.fusion.losses import weight_at


@pytest.mark.parametrize("schedule", [0, 1.5, [0, 1, 2, 1], (0.1, 1, 0.5, 0.9)])
def test_what_a_weight_may_be(schedule):
    check_weight("loss.mask", schedule)


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
        check_weight("loss.mask", schedule)
    assert "[start, value, value, stop]" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_config_takes_schedules_and_names_the_bad_key(tmp_path):
    path = tmp_path / "fusion.yaml"
    path.write_text("loss:\n  normal: [0.1, 1.0, 0.5, 0.9]\n")
    config = configs.load(FusionConfig, path)
    assert weight_at(config.loss.normal, 0.5) == pytest.approx(0.75)
    for key in ("colour", "normal", "mask", "eikonal", "sparse", "smooth"):
        with pytest.raises(InputError, match=rf"loss\.{key}"):
            configs.load(FusionConfig, path, [f"loss.{key}=[0.9,1,2,0.1]"])


def test_all_views_are_blended_with_null_as_with_the_old_zero():
    assert FusionConfig().texture.top_views == 3
    for value in ("0", "null", ""):
        assert configs.load(FusionConfig, None, [f"texture.top_views={value}"]).texture.top_views is None


@pytest.mark.parametrize("key", ["pose.stop", "conflict.lambda_start", "conflict.layers", "field.inv_s", "field.beta"])
def test_what_the_fit_divides_by_may_not_be_zero(key):
    with pytest.raises(InputError, match=rf"{key}.*from "):
        configs.load(FusionConfig, None, [f"{key}=0"])
