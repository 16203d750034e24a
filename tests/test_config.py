from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING

from nova3d import config
from nova3d.config import ConfigError


@dataclass
class Model:
    width: int = 32
    dropout: float = 0.1
    channels: list[int] = field(default_factory=lambda: [32, 64])


@dataclass
class Run:
    name: str = "mini"
    steps: int = 100
    note: str | None = None
    model: Model = field(default_factory=Model)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class Needy:
    data: str = MISSING


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 7\nmodel: {width: 8, channels: [4]}\n")
    loaded = config.load(Run, path, ["model.width=16", "note=hello"])
    assert loaded == Run(steps=7, note="hello", model=Model(width=16, channels=[4]))
    assert isinstance(loaded.model, Model)


def test_defaults_alone_and_an_empty_file(tmp_path: Path) -> None:
    assert config.load(Run) == Run()
    assert config.load(Run, write(tmp_path, "")) == Run()


def test_save_load_round_trip(tmp_path: Path) -> None:
    original = Run(name="x", model=Model(width=3, dropout=0.25), weights={"eikonal": 0.5})
    config.save(original, tmp_path / "saved.yaml")
    assert config.load(Run, tmp_path / "saved.yaml") == original
    assert config.to_dict(original)["model"] == {"width": 3, "dropout": 0.25, "channels": [32, 64]}


def test_a_dict_field_takes_any_key_of_its_type(tmp_path: Path) -> None:
    assert config.load(Run, write(tmp_path, "weights: {mask: 1}")).weights == {"mask": 1.0}
    with pytest.raises(ConfigError, match="mask"):
        config.load(Run, overrides=["weights.mask=high"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {wdth: 3}", ["run.yaml", "unknown key 'model.wdth'", "did you mean 'model.width'"]),
        ("stepz: 3", ["run.yaml", "'stepz'", "did you mean 'steps'"]),
        ("model: {width: wide}", ["run.yaml", "model.width", "wide"]),
        ("steps: 1.5", ["run.yaml", "steps", "1.5"]),
        ("model: 3", ["run.yaml", "'model' is a section", "width, dropout, channels"]),
        ("model: {channels: 4}", ["run.yaml", "model.channels"]),
        ("name: [1, 2]", ["run.yaml", "name"]),
        ("name: ${nowhere}", ["run.yaml", "name", "nowhere"]),
        ("model: {width: [1", ["run.yaml", "not valid YAML"]),
        ("a: 1\na: 2", ["run.yaml", "not valid YAML"]),
        ("- 1\n- 2", ["run.yaml", "mapping"]),
        ("42", ["run.yaml", "cannot be read as a config"]),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Run, write(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.dropuot=0.3", ["'model.dropuot'", "did you mean 'model.dropout'"]),
        ("steps=many", ["override 'steps=many'", "steps"]),
        ("steps", ["'steps'", "key=value"]),
        ("model.channels=[1,", ["override 'model.channels=[1,'"]),
        ("model=null", ["model"]),
    ],
)
def test_a_bad_override_is_named(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Run, overrides=[override])
    for part in parts:
        assert part in str(caught.value)


def test_missing_file_not_text_and_missing_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'.*absent\.yaml' does not exist"):
        config.load(Run, tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        config.load(Run, tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="'data' has no value; give it as data=VALUE"):
        config.load(Needy)
    assert config.load(Needy, overrides=["data=x"]).data == "x"


def test_is_config() -> None:
    assert config.is_config(Run())
    assert not config.is_config(Run)
    assert not config.is_config({})
