"""One grammar for all verbs: where words may stand, what is refused before torch is loaded, and completion."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nova3d
from nova3d import config
from nova3d.cli import VERBS, common, completion, generate, models
from nova3d.errors import InputError
from nova3d.settings import GenerateConfig
from nova3d.utils import yaml_text
from tests.helpers.commands import ROOT, run_verb

pytestmark = pytest.mark.usefixtures("keep_logging")

HEAVY = {"torch", "scipy", "diffusers", "transformers", "numba", "trimesh", "rich"}
# What each verb needs before its keys are looked at.
NEEDED = {
    "reconstruct": ["views", "--out", "mesh.glb"],
    "evaluate": ["--predictions", ".", "--references", ".", "--out", "c"],
    "reproduce": ["table1"],
    "ablate": ["--suite", "attention", "--objects", "x"],
    "export": ["--model", "a", "--out", "b"],
    "inspect": ["a"],
    "calibrate": ["--model", "a", "--shards", "b"],
    "completion": ["bash"],
}

# A file or folder that is not there.
MISSING = [
    ["train", "data.shards=assets/train-sample,absent"],
    ["train", "data.validation=absent"],
    ["train", "vae=absent"],
    ["train", "svd=absent"],
    ["train", "vae=.", "data.cache=absent"],
    ["train-autoencoder", "shards=absent"],
    ["train-autoencoder", "generator=absent"],
    ["cache-latents", "data.shards=absent", "--out", "latents"],
    ["reproduce", "table1", "--objects", "absent"],
    ["reproduce", "table1", "--objects", ".", "--model", "absent"],
    ["ablate", "--suite", "attention", "--objects", "absent"],
    ["ablate", "--suite", "fusion", "--objects", "absent"],
    ["evaluate", "--predictions", "absent", "--references", ".", "--out", "c"],
    ["evaluate", "--predictions", ".", "--references", "absent", "--out", "c"],
    ["evaluate", "--predictions", ".", "--references", ".", "--out", "c", "--baseline", "absent"],
    ["export", "--model", "absent", "--out", "b"],
    ["calibrate", "--model", "absent", "--shards", "."],
    ["calibrate", "--model", "nova3d-mini", "--shards", "absent"],
    ["inspect", "absent"],
]

HORSE = "assets/images/horse.png"
# Another path that will not do, and what is said of it.
WRONG = [
    *((verb, HORSE, "--mask", "absent.png", "mask 'absent.png' does not exist") for verb in ("generate", "sample")),
    *((verb, HORSE, "--model", "absent", "model 'absent' is neither a folder nor") for verb in ("generate", "sample")),
    *((verb, HORSE, "--model", "tests", "'tests' is not a model folder") for verb in ("generate", "sample")),
    *((verb, HORSE, "--out", "README.md/x", "cannot write to 'README.md/x'") for verb in ("generate", "sample")),
    ("generate", "absent*.png", "no file fits 'absent*.png'"),
    ("generate", "tests", "the folder 'tests' has no pictures"),
    ("generate", "assets/images", "--model", "absent", "model 'absent' is neither a folder nor"),
    ("generate", "assets/images", "--mask", "absent.png", "mask 'absent.png' belongs to one picture"),
    ("generate", "assets/images/hors*", "--mask", "absent.png", "mask 'absent.png' does not exist"),
    ("generate", "assets/images", "--out", "README.md/x", "cannot write to 'README.md/x'"),
    ("reconstruct", HORSE, "--out", "mesh.glb", f"view folder '{HORSE}' is no folder"),
    ("reconstruct", "tests", "--out", "mesh.step", "output 'mesh.step' must end in one of .glb"),
    ("reconstruct", "tests", "--out", "README.md/mesh.glb", "cannot write to"),
]


def test_help_a_bad_key_and_a_missing_path_of_every_verb_load_no_torch() -> None:
    commands = [[verb, "--help"] for verb in VERBS]
    commands += [[verb, *NEEDED.get(verb, []), "no_such_key=1"] for verb in VERBS]
    commands += [
        ["ablate", "--suite", "fusion", "--objects", "x", "no_such_key=1"],
        ["render", "plan", "no_such_key=1"],
    ]
    commands += [["generate", "--no-such-option"], ["--help"], ["--version"], ["no-such-verb"]]
    commands += [["generate", "absent.png"], ["sample", "absent.png"], ["reconstruct", "absent", "--out", "mesh.glb"]]
    commands += [["generate", "absent.png", "--workers", "0"]]
    commands += [list(words) for *words, _ in WRONG]
    commands += MISSING
    program = f"""
import sys
from nova3d.cli import main
for words in {commands!r}:
    sys.argv = ["nova3d", *words]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    loaded = sorted({HEAVY!r} & set(sys.modules))
    print("RESULT", *words, code, loaded)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(results) == len(commands)
    for words, result in zip(commands, results, strict=True):
        code = 0 if words[-1] in ("--help", "--version") else 2
        assert result == " ".join(["RESULT", *words, str(code), "[]"])
    errors = done.stderr.splitlines()
    assert len(errors) == len(VERBS) + 8 + len(WRONG + MISSING) and all(line.startswith("error: ") for line in errors)
    assert sum("no_such_key" in line for line in errors) == len(VERBS) + 2
    assert all(line.endswith("'absent' does not exist") for line in errors[-len(MISSING) :])
    told = errors[-len(WRONG + MISSING) : -len(MISSING)]
    assert all(message in line for line, (*_, message) in zip(told, WRONG, strict=True))


@pytest.mark.parametrize(
    "words",
    [
        ["generate", HORSE, "--out", "new"],
        ["generate", HORSE, "assets/images/owl.png", "--out", "new"],
        ["sample", HORSE, "--out", "new"],
        ["reconstruct", "tests", "--out", "new/mesh.glb"],
        ["evaluate", "--predictions", "tests", "--references", "tests", "--out", "new"],
        ["ablate", "--suite", "fusion", "--objects", "assets/objects", "--out", "new"],
    ],
    ids=" ".join,
)
def test_a_gpu_that_is_not_there_is_told_before_a_folder_is_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    for folder in ("assets", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    assert run_verb(monkeypatch, *words, "--device", "cuda") == 2
    assert "device 'cuda' was asked for, but torch finds no CUDA GPU" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"assets", "tests"}


def test_an_unknown_verb_is_one_line_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(monkeypatch, "exprt") == 2
    error = capsys.readouterr().err
    assert error == "error: unknown verb 'exprt', did you mean 'export'? `nova3d --help` lists all\n"
    assert run_verb(monkeypatch, "zzz") == 2
    assert capsys.readouterr().err == "error: unknown verb 'zzz'; `nova3d --help` lists all\n"


def test_an_unknown_option_is_one_line_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(monkeypatch, "generate", "photo.png", "--modle", "mini") == 2
    error = capsys.readouterr().err
    assert error == (
        "error: unknown argument '--modle'; did you mean '--model'?; nova3d generate --help lists what there is\n"
    )


def test_a_former_name_works_with_a_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(monkeypatch, "train_autoencoder", "--help") == 0
    shown = capsys.readouterr()
    assert shown.err == "hint: 'train_autoencoder' is now called 'train-autoencoder'\n"
    assert shown.out.startswith("usage: nova3d train-autoencoder ")


def test_the_overview_names_every_verb_and_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"nova3d {nova3d.__version__}\n"
    assert run_verb(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")][:-1] == list(VERBS)


def test_the_merged_config_is_printed_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "mug.png", "--out", "there", "--model", "mini", "sample.seed=3", "--seed", "4"]
    assert run_verb(monkeypatch, *words, "fusion.optim.steps=7", "--print-config") == 0
    (tmp_path / "own.yaml").write_text(capsys.readouterr().out)
    settings = config.load(GenerateConfig, tmp_path / "own.yaml")
    assert (settings.out, settings.sample.image, settings.sample.seed) == ("there", "mug.png", 4)
    assert (settings.fusion.optim.steps, settings.fusion.extract.faces) == (7, 20000)  # the second is mini's
    assert Path(settings.sample.model).name == "nova3d-mini" and Path(settings.sample.model).is_dir()
    assert run_verb(monkeypatch, "evaluate", *NEEDED["evaluate"], "--protocol", "mini", "seed=5", "--print-config") == 0
    printed = yaml_text.typed_all(yaml_text.parse(capsys.readouterr().out, "printed"))
    assert (printed["name"], printed["seed"]) == ("mini", 5)


@pytest.mark.parametrize(
    ("words", "images", "overrides"),
    [
        (["a.png"], ["a.png"], []),
        (["a.png", "b.png", "out=x"], ["a.png", "b.png"], ["out=x"]),
        (["--image", "a.png", "sample.seed=1"], ["a.png"], ["sample.seed=1"]),
        (["image=a.png", "sample.seed=1"], ["a.png"], ["sample.seed=1"]),
        (["sample.seed=1", "a.png", "--seed", "2"], ["a.png"], ["sample.seed=1"]),
        (["seed=1.png"], ["seed=1.png"], []),  # a file of that name is there
    ],
)
def test_pictures_and_keys_stand_anywhere(
    words: list[str], images: list[str], overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1.png").touch()
    taken: dict[str, Any] = {}

    def load(schema: type, stage: str, options: Any, flags: dict[str, Any]) -> None:
        taken.update(overrides=options.overrides, flags=flags)
        raise InputError("far enough")

    monkeypatch.setattr(common, "load_config", load)
    for verb, key in ((generate.generate, "sample.image"), (generate.sample, "image")):
        if verb is generate.sample and len(images) > 1:
            with pytest.raises(InputError, match="sample takes one picture, and 2 are given"):
                verb(words)
            continue
        with pytest.raises(InputError, match="far enough"):
            verb(words)
        given = "image=a.png" in taken["overrides"]  # of `sample` a key of its own
        assert given or taken["flags"] == {key: images[0] if len(images) == 1 else None}
        if verb is generate.generate:
            assert taken["overrides"] == overrides


def test_a_key_of_no_config_is_the_option_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = models.export_parser().parse([f"model={tmp_path}/a", "out=b"])
    assert (options.model, options.out) == (f"{tmp_path}/a", Path("b"))
    options = generate.generate_parser().parse(["device=cpu", "mask=m.png", "out=there"])
    assert (options.device, options.flags, options.overrides) == ("cpu", {"sample.mask": "m.png"}, ["out=there"])


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    line = " ".join(f"'{word}'" for word in ("nova3d", *words))
    program = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _nova3d; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_verbs_options_keys_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    completion.completion(["bash"])
    script = capsys.readouterr().out
    assert complete(script, "tr") == ["train", "train-autoencoder"]
    assert complete(script, "generate", "--im") == ["--import", "--image"]
    assert complete(script, "train", "--preset", "") == ["24gb", "48gb", "mini-gpu"]
    assert complete(script, "generate", "fusion.optim.st") == ["fusion.optim.steps="]
    assert complete(script, "reconstruct", "optim.st") == ["optim.steps="]
    assert complete(script, "reconstruct", "--config", "") == ["cpu", "draft", "gpu", "paper"]
    assert complete(script, "evaluate", "--protocol", "mesh") == ["mesh-aligned", "mesh-sync"]
    assert complete(script, "generate", "--model", "") == ["nova3d-mini"]
    assert complete(script, "ablate", "--suite", "f") == ["fusion"]
    assert complete(script, "render", "st") == ["status"]
    assert complete(script, "completion", "f") == ["fish"]
    assert complete(script, "generate", "sample.image", "=", "ph") == []  # bash offers files
    assert complete(script, "generate", "sample.solver", "=") == ["euler", "heun", "null"]
    assert complete(script, "train", "optim.name", "=", "adamw8") == ["adamw8bit"]
    assert complete(script, "train", "compile", "=", "") == ["true", "false"]
    assert complete(script, "reconstruct", "--config", "=", "dr") == ["draft"]


def test_a_command_without_a_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(**_: Any) -> None:
        raise InputError("far enough")

    monkeypatch.setattr("nova3d.generation.generate", generate)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.png").touch()
    for words in ["generate"], ["sample"], ["generate", "--seed", "1"]:
        assert run_verb(monkeypatch, *words, "--device", "cpu") == 2
        error = capsys.readouterr().err
        assert "no picture is named: give one or more" in error and "assets/images/horse.png" in error
    for words in ["mine.png"], ["--image", "mine.png"], ["sample.image=mine.png"], ["assets/images/horse.png"]:
        assert run_verb(monkeypatch, "generate", *words, "--device", "cpu") == 2
        assert "far enough" in capsys.readouterr().err


def test_zsh_and_fish_get_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    completion.completion(["bash"])
    script = capsys.readouterr().out
    completion.completion(["zsh"])
    zsh = capsys.readouterr().out
    assert zsh.endswith(script) and "bashcompinit" in zsh
    completion.completion(["fish"])
    fish = capsys.readouterr().out
    assert f'-a "{" ".join(VERBS)}"' in fish
    words, begin = completion.words("export"), 'complete -c nova3d -n "__fish_seen_subcommand_from export" '
    options = re.findall(rf"^{re.escape(begin)}-[ls] ([\w-]+)", fish, re.MULTILINE)
    assert options == [word.lstrip("-") for word in words if word.startswith("-")] and "out" in options
    assert f'{begin}-a "{" ".join(word for word in words if not word.startswith("-"))}"' in fish
    assert re.search(r'__fish_seen_subcommand_from train" -a ".*optim\.name=adamw8bit.*"', fish)
    assert '"__fish_seen_subcommand_from reconstruct" -l config -x -a "cpu draft gpu paper"' in fish


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("nova3d gen", ["generate"]),
        ("nova3d reconstruct --config ", ["cpu", "draft", "gpu", "paper"]),
        ("nova3d reconstruct --config=d", ["--config=draft"]),
        ("nova3d generate --k", ["--keep-candidates"]),
        ("nova3d reconstruct optim.st", ["optim.steps="]),
        ("nova3d train optim.name=adamw8", ["optim.name=adamw8bit"]),
        ("nova3d generate --mask own-m", ["own-mask.png"]),
    ],
)
def test_fish_completes(line: str, offered: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    completion.completion(["fish"])
    (tmp_path / "own-mask.png").touch()
    program = f"{capsys.readouterr().out}\ncomplete -C '{line}'"
    done = subprocess.run(["fish", "-N", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == offered
