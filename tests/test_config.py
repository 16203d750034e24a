import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from nova3d import config
from nova3d.config import MISSING, ConfigError, Range, Sentinel


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


def test_a_path_in_the_place_of_a_text_is_saved_as_its_text(tmp_path: Path) -> None:
    made: Any = Run(name=Path("a/b"), note=Path("c"))  # type: ignore[arg-type]
    config.validate(made)
    config.save(made, tmp_path / "saved.yaml")
    assert config.load(Run, tmp_path / "saved.yaml") == Run(name="a/b", note="c")
    with pytest.raises(ConfigError, match="steps"):
        config.validate(Run(steps=Path("a")))  # type: ignore[arg-type]


def test_changed_is_a_copy_with_overrides() -> None:
    original = Run(name="x", model=Model(width=3, channels=[4]), weights={"eikonal": 0.5})
    changed = config.changed(original, ["model.width=5", "weights.mask=1"])
    assert changed == Run(name="x", model=Model(width=5, channels=[4]), weights={"eikonal": 0.5, "mask": 1.0})
    changed.model.channels.append(8)
    assert original == Run(name="x", model=Model(width=3, channels=[4]), weights={"eikonal": 0.5})
    with pytest.raises(ConfigError, match=r"did you mean 'model\.width'"):
        config.changed(original, ["model.widths=5"])


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
        ("train.steps=3", ["unknown key 'train'", "did you mean 'steps'"]),
        ("unet.dropout=0.3", ["unknown key 'unet'", "did you mean 'model.dropout'"]),
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


@dataclass
class Words:
    out: str = "outputs"
    title: str | None = None
    names: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    size: int = 1
    rate: float = 0.5
    on: bool = False
    pair: tuple[int, ...] = (1, 2)


TEXTS = (
    "run #2",
    "2024_01_15",
    "2024-01-15",
    "010",
    "1.10",
    "12:30",
    "yes",
    "null",
    "1e3",
    "a: b",
    "[x",
    "*a",
    "!x",
    "~/x",
    "@x",
    "a=b",
    "${oc.env:HOME}",
    "${x}",
    " x ",
    "C:\\x",
    "it's",
    "é",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_string_key_takes_the_text_of_an_override_as_it_stands(tmp_path: Path, text: str) -> None:
    loaded = config.load(Words, None, [f"out={text}"])
    assert loaded.out == text
    config.save(loaded, tmp_path / "saved.yaml")  # and the file says the same
    assert config.load(Words, tmp_path / "saved.yaml") == loaded
    if text not in ("null", ""):
        assert config.load(Words, None, [f"title={text}", f"weights.a={text}"]) == Words(
            title=text, weights={"a": text}
        )
    assert config.load(Words, None, [], {"title": text or None, "names": [text]}).names == [text]


def test_strings_of_a_file_and_of_lists_are_not_changed_either(tmp_path: Path) -> None:
    path = write(tmp_path, "out: 2024_01_15\ntitle: 1.10\nnames: [010, yes, 12:30, 1e3]\nweights: {on: off}\n")
    loaded = config.load(Words, path, ["names=[a, 007]"])
    assert config.load(Words, path).names == ["010", "yes", "12:30", "1e3"]
    assert (loaded.out, loaded.title, loaded.weights, loaded.names) == (
        "2024_01_15",
        "1.10",
        {"on": "off"},
        ["a", "007"],
    )


def test_numbers_switches_and_lists_are_read_from_their_text() -> None:
    loaded = config.load(Words, None, ["size=1_000", "rate=1e-3", "on=yes", "pair=[3, 4, 5]"])
    assert loaded == Words(size=1000, rate=1e-3, on=True, pair=(3, 4, 5))
    assert config.load(Words, None, ["size=010"]).size == 10  # not octal
    assert config.to_dict(loaded)["pair"] == [3, 4, 5]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("size=12:30", "size: '12:30' is not of the type int"),
        ("size=1.5", "size: '1.5' is not of the type int"),
        ("size=[1,2]", "size: a list is not of the type int"),
        ("on=maybe", "on: 'maybe' is not of the type bool"),
        ("pair=3", "pair: '3' is not of the type tuple"),
        ("pair=[1,x]", r"pair\[1\]: 'x' is not of the type int"),
        ("names=x", "names: 'x' is not of the type list"),
        ("colour=red", "unknown key 'colour'; the keys here are out, title, names"),
        ("outt=3", "did you mean 'out'"),
    ],
)
def test_a_value_of_another_type_is_named_and_only_a_near_key_is_suggested(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(Words, None, [override])
    assert "\n" not in str(caught.value) and ("did you mean" in str(caught.value)) == ("did you mean" in message)


def test_a_key_of_another_section_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'dropout'; did you mean 'model.dropout'"):
        config.load(Run, None, ["dropout=0.2"])


def test_nothing_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    assert config.load(Words, write(tmp_path, "out: '${oc.env:TOKEN}'\n")).out == "${oc.env:TOKEN}"
    with pytest.raises(ConfigError, match=r"out: '\$\{oc.env:TOKEN\}' would not be interpolated") as caught:
        config.load(Words, write(tmp_path, "out: ${oc.env:TOKEN}\n"))
    assert "secret" not in str(caught.value)


def test_yaml_that_unfolds_or_nests_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1,1]"] + [f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 40)]
    for text in ("\n".join(lines), "names: &a [*a]", "names: " + "[" * 5000, "names: !!python/object:os.system x"):
        with pytest.raises(ConfigError) as caught:
            config.load(Words, write(tmp_path, text))
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@dataclass
class Source:
    rows: dict[str, list[float | None]] = MISSING


def test_a_mapping_without_a_default_is_filled_and_asked_for() -> None:
    assert config.from_dict(Source, {"rows": {"a": [1, None]}}, "x").rows == {"a": [1.0, None]}
    with pytest.raises(ConfigError, match="'rows' has no value"):
        config.load(Source)


@dataclass
class Bounded:
    steps: Annotated[int, Range(1, 4096)] = 10
    """How many steps."""
    rate: Annotated[float, Range(0, 1)] = 0.5
    budget: Annotated[float | None, Range(0), Sentinel(-1)] = None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "override 'steps=0': steps: '0' is not from 1 to 4096"),
        ("steps=-5", "steps: '-5' is not from 1 to 4096"),
        ("steps=99999999999999999999", "is not from 1 to 4096"),
        ("rate=1.01", "rate: '1.01' is not from 0 to 1"),
        ("rate=.nan", "rate: 'nan' is not from 0 to 1"),
        ("rate=.inf", "rate: 'inf' is not from 0 to 1"),
        ("budget=-2", "budget: '-2.0' is not at least 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.load(Bounded, overrides=[override])


def test_numbers_within_their_range_are_read() -> None:
    assert config.load(Bounded, overrides=["steps=4096", "rate=0", "budget=.inf"]) == Bounded(4096, 0.0, math.inf)
    assert config.load(Bounded, overrides=["budget=-1", "steps=1"]) == Bounded(1)
    assert config.load(Bounded, overrides=["budget=null"]).budget is None
    assert "How many steps. From 1 to 4096." in config.help_text(Bounded)


@dataclass
class Solving:
    solver: Literal["euler", "heun"] = "euler"
    """Of the ODE."""
    device: Literal["cpu", "no"] | None = None
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    width: Annotated[int, Range(1)] = 4
    fast: bool = False


def test_a_literal_takes_its_choices_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "solver: heun\ndevice: no\ntrackers: [wandb]\n")
    assert config.load(Solving, path) == Solving("heun", "no", ["wandb"])
    assert config.load(Solving, path, ["device=", "solver='euler'"]) == Solving("euler", None, ["wandb"])
    assert config.load(Solving, values={"solver": "heun"}).solver == "heun"
    for override, message in (
        ("solver=rk4", "override 'solver=rk4': solver: 'rk4' is not one of euler, heun"),
        ("solver=", "override 'solver=': solver: '' is not one of euler, heun"),
        ("device=gpu", "override 'device=gpu': device: 'gpu' is not one of cpu, no"),
        ("trackers=[wandb,comet]", "override 'trackers=[wandb,comet]': trackers[1]: 'comet' is not one of "),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            config.load(Solving, overrides=[override])
    with pytest.raises(ConfigError, match=r"run\.yaml: solver: a list is not one of euler, heun"):
        config.load(Solving, write(tmp_path, "solver: [heun]"))


def test_choices_are_listed_in_help_reference_and_keys() -> None:
    keys = {key.name: key for key in config.fields(Solving)}
    assert [(key.type, key.choices) for key in keys.values()] == [
        ("euler | heun", ("euler", "heun")),
        ("cpu | no | null", ("cpu", "no", "null")),
        ("list[tensorboard | wandb]", ()),
        ("int", ()),
        ("bool", ("true", "false")),
    ]
    assert "  solver=euler (euler | heun)\n      Of the ODE." in config.help_text(Solving)
    assert r"| `solver` | `euler \| heun` | `euler` | Of the ODE. |" in config.markdown(Solving)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "rk4"}, "config: solver: 'rk4' is not one of euler, heun"),
        ({"width": 0}, "config: width: '0' is not at least 1"),
        ({"width": "wide"}, "config: width: 'wide' is not of the type int"),
    ],
)
def test_an_instance_made_in_python_is_validated_as_a_file_is(wrong: dict[str, Any], message: str) -> None:
    config.validate(Solving("heun", "cpu", ["wandb"]))
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        config.validate(Solving(**wrong))


def test_nested_mappings_are_flattened_to_dotted_keys_in_order() -> None:
    nested = {"b": {"y": 1, "x": {"deep": [2, {"kept": 3}]}}, "a": None, "empty": {}}
    flat = {"b.y": 1, "b.x.deep": [2, {"kept": 3}], "a": None}
    assert config.flatten(nested) == flat and list(config.flatten(nested)) == list(flat)
