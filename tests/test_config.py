from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from omegaconf import MISSING

from nova3d import config
from nova3d.config import ConfigError, Sentinel


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


@dataclass
class Arm:
    """One method.

    More of it.
    """

    model: str = MISSING
    """A model folder."""


@dataclass
class Base:
    """A base class."""

    seed: int = 0
    """Of the random numbers."""
    limit: Annotated[int | None, Sentinel(0), Sentinel(-1)] = None
    """The most objects,
    over all folders; null for all of a|b."""


@dataclass
class Study(Base):
    """A schema with a base, a section and a mapping of sections."""

    seed: int = 3
    title: str | None = None
    rates: list[float] = field(default_factory=lambda: [0.5, 1e-6])
    """Learning rates."""
    "A second literal is no text of the key."
    anything: Any = 1.0
    needy: Needy = field(default_factory=lambda: Needy("x"))
    model: Model = field(default_factory=lambda: Model(width=48))
    """The network."""
    arms: dict[str, Arm] = field(default_factory=dict)
    """What is compared."""


def test_fields_give_every_key_with_type_default_and_the_literal_below_it() -> None:
    assert [(key.name, key.type, key.default, key.text) for key in config.fields(Study)] == [
        ("seed", "int", "3", "Of the random numbers."),  # the text is inherited, the default is not
        ("limit", "int | null", "null", "The most objects, over all folders; null for all of a|b."),
        ("title", "str | null", "null", ""),
        ("rates", "list[float]", "[0.5, 1e-06]", "Learning rates."),
        ("anything", "any", "1.0", ""),
        ("needy.data", "str", "x", ""),
        ("model.width", "int", "48", ""),  # as the section's default has it
        ("model.dropout", "float", "0.1", ""),
        ("model.channels", "list[int]", "[32, 64]", ""),
        ("arms", "dict[str, Arm]", "{}", "What is compared."),
        ("arms.NAME.model", "str", "required", "A model folder."),
    ]


def test_the_defaults_that_fields_prints_are_overrides_of_the_same_value() -> None:
    keys = [key for key in config.fields(Study) if "NAME" not in key.name]
    assert config.load(Study, overrides=[f"{key.name}={key.default}" for key in keys]) == Study()


def test_help_and_reference_pages_show_the_same_keys() -> None:
    text, page = config.help_text(Study, 44), config.markdown(Study)
    assert "  limit=null (int | null)\n      The most objects, over all folders;\n      null for all of a|b.\n" in text
    assert (
        "| `limit` | `int \\| null` | `null` | The most objects, over all folders; null for all of a\\|b. |\n" in page
    )
    assert "\n\n### model\n\nThe network.\n\n| key |" in page
    assert "\n\n### needy\n\n| key |" in page
    assert "\n\n### arms.NAME\n\nOne method.\n\n| key |" in page
    for key in config.fields(Study):
        assert f"  {key.name}=" in text
        assert f"| `{key.name}` |" in page


@pytest.mark.parametrize("override", ["limit=0", "limit=-1", "limit=", "limit=null", "limit=''", "title=", "title=''"])
def test_an_optional_key_is_unset_by_null_by_nothing_and_by_its_old_sentinel(tmp_path: Path, override: str) -> None:
    changed = ["limit=4", "title=x"]
    key, value = override.split("=")
    assert getattr(config.load(Study, None, [*changed, override]), key) is None
    assert getattr(config.load(Study, write(tmp_path, f"{key}: {value}"), []), key) is None
    assert config.load(Study, None, [*changed, "seed=0"]) == Study(seed=0, limit=4, title="x")


def test_a_sentinel_is_only_the_value_that_was_declared(tmp_path: Path) -> None:
    assert config.load(Study, None, ["limit=1"]).limit == 1
    assert config.load(Study, None, ["title='0'"]).title == "0"
    with pytest.raises(ConfigError, match="seed"):
        config.load(Study, None, ["seed="])


def test_a_record_of_an_earlier_version_reads_as_todays() -> None:
    record = config.to_dict(Study(arms={"a": Arm("x")})) | {"limit": 0, "title": ""}
    assert config.from_dict(Study, record, "record.json") == Study(arms={"a": Arm("x")})
    with pytest.raises(ConfigError, match=r"record\.json: unknown key 'sed'; did you mean 'seed'"):
        config.from_dict(Study, {"sed": 1}, "record.json")
