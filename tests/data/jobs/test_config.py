"""The settings of a render job: what is read, what is refused, and what files of earlier versions mean."""

from pathlib import Path

import pytest

from nova3d import config as configs
from nova3d.data.jobs.config import RenderConfig
from nova3d.errors import InputError


def test_zeros_of_earlier_versions_are_unset(tmp_path: Path) -> None:
    text = "limit: 0\npool: {workers: 0, memory_gb: 0, breaker_share: 0, breaker_blanks: 0}\nengine: {threads: 0}\n"
    (tmp_path / "old.yaml").write_text(text)
    config = configs.load(RenderConfig, tmp_path / "old.yaml")
    pool = config.pool
    assert (pool.workers, pool.memory_gb, pool.breaker_share, pool.breaker_blanks) == (None,) * 4
    assert config.limit is None and config.engine.threads is None
    config.check()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pool.launcher=slurmm", "pool.launcher: 'slurmm' is not one of local, slurm, ray"),
        ("engine.light=dim", "engine.light: 'dim' is not one of studio, flat"),
        ("engine.normals=smooth", "engine.normals: 'smooth' is not one of geometry, shading"),
        ("pool.strikes=0", "pool.strikes: '0' is not at least 1"),
        ("pool.workers=-1", "pool.workers: '-1' is not at least 1"),
        ("pool.breaker_share=1.5", "pool.breaker_share: '1.5' is not from 0 to 1"),
        ("size=0", "size: '0' is not at least 1"),
        ("val_share=1", "val_share must be less than 1"),
        ("engine.name=cycles", "engine.name 'cycles' is not one of raster, blender, or package.module:factory"),
        ("pool.gpus=[0]", "pool.gpus is given but engine.device is cpu"),
        ("pool.shard=3/2", "pool.shard '3/2' must be i/n"),
        ("preset=ortho", "preset 'ortho' is not one of"),
        ("filters.reject=[ugly]", "ugly"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        configs.load(RenderConfig, None, [override]).check()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_settings_made_in_python_are_checked_too() -> None:
    config = RenderConfig()
    config.pool.fetch_ahead = 0
    with pytest.raises(InputError, match=r"pool\.fetch_ahead: '0' is not at least 1"):
        config.check()
