"""What verbs make of options: dataclasses with their own defaults, errors in the words of flags."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from pmsplat import cli, registry
from pmsplat.cli._shared import build_options, photo_options
from pmsplat.errors import UserError
from pmsplat.scene import PhotoOptions, open_scene
from pmsplat.tasks import convert, depth, predict, refine, render, view

VERBS = {
    "convert": (convert.Options, ["in.ply", "out.ply"]),
    "depth": (depth.Options, ["room", "--model", "m", "--output", "o"]),
    "predict": (predict.Options, ["room", "--model", "m", "--output", "o"]),
    "refine": (refine.Options, ["room", "--output", "o"]),
    "render": (render.Options, ["scene.ply", "--output", "o"]),
    "view": (view.Options, ["scene.ply"]),
}
PHOTOS = {"photos"}  # --images, --strict and --background make it
NOT_ON_THE_COMMAND_LINE = {
    "predict": {"seconds", *PHOTOS},
    "depth": PHOTOS,
    "refine": PHOTOS,
    "convert": {"similarity"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_given_is_the_dataclass_s_default(verb: str) -> None:
    kind, words = VERBS[verb]
    arguments = cli.parser().parse_args([verb, *words])
    assert build_options(kind, arguments) == kind()
    named = {field.name for field in fields(kind)}
    assert named - set(vars(arguments)) == NOT_ON_THE_COMMAND_LINE.get(verb, set())


def test_what_is_given_arrives() -> None:
    words = ["render", "s.ply", "--output", "o", "--orbit", "3", "--no-video", "--size", "4x5"]
    options = build_options(render.Options, cli.parser().parse_args([*words, "--median"]), limit=2)
    assert options == render.Options(orbit=3, video=False, size=(4, 5), median=True, limit=2)


@pytest.mark.parametrize(
    ("words", "verb", "said"),
    [
        ("predict room --output o --graph", "predict", "--graph (an option of `depth`, "),
        ("refine room --output o --precision=bf16", "refine", "16 (an option of `depth`, "),
        ("depth room --output o --grahp", "depth", "--grahp\n"),
    ],
)
def test_an_unknown_option_is_said_by_its_verb(
    words: str, verb: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(words.split())
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: pmsplat {verb} ") and said in shown


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_the_defaults_that_are(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args([verb, "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for field in fields(VERBS[verb][0]):
        flag = f"--{field.name.replace('_', '-')} "
        told = re.search(rf"{flag}\S*(?: [^-(]*)?\(default: (\d+)\)", text)
        if told is not None and field.default is not None:
            assert int(told[1]) == field.default, field.name


def test_how_photos_are_found() -> None:
    words = ["predict", "room", "--model", "m", "--output", "o"]
    assert photo_options(cli.parser().parse_args(words)) == PhotoOptions()
    words += ["--images", "images_4", "--strict", "--background", "white"]
    wanted = PhotoOptions("images_4", True, (1.0, 1.0, 1.0))
    assert photo_options(cli.parser().parse_args(words)) == wanted


def test_errors_name_flags() -> None:
    arguments = argparse.Namespace(size=None, held_out=3, video=True, overwrite=False)
    text = "`size=3x4` and `held_out`; drop `video=False`, or add `overwrite=True`; `pmsplat data`"
    assert cli.name_flags(text, arguments) == (
        "--size 3x4 and --held-out; drop --no-video, or add --overwrite; `pmsplat data`"
    )
    assert cli.name_flags("`seconds=2`", arguments) == "`seconds=2`"


def test_keys_of_files_are_no_flags(tmp_path: Path) -> None:
    photo = torch.zeros(3, dtype=torch.uint8)
    scene = {"key": "a", "images": [photo, photo], "cameras": torch.zeros(1, 18)}
    torch.save([scene], tmp_path / "000000.torch")
    arguments = cli.parser().parse_args(["render", "scene.ply", "--output", "o"])
    with pytest.raises(UserError, match="no 'cameras' with 18 numbers") as caught:
        open_scene(tmp_path / "000000.torch")
    assert cli.name_flags(str(caught.value), arguments) == str(caught.value)


def test_the_command_prints_flags(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(arguments: argparse.Namespace) -> None:
        raise UserError("`size=3x4`", "larger ones", "choose another `size`")

    assert cli.execute(refuse, argparse.Namespace(size=(3, 4))) == 2
    told = capsys.readouterr().err
    assert told == "pmsplat: --size 3x4; wanted larger ones; choose another --size\n"


def test_lines_of_the_list_look_alike() -> None:
    for name in registry.names("cli", ("configure", "run")):
        module = __import__(f"pmsplat.cli.{name}", fromlist=["configure"])
        line = module.__doc__.partition("\n")[0]
        assert line[0].isupper() and not line.endswith("."), line


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (
            {"views": None, "size": None, "device": "cuda"},
            "fewer --views, or a smaller --size, or --dev",
        ),
        ({"overrides": [], "device": "auto"}, "smaller images (dataset.size), or --device cpu"),
        ({"scene": "a"}, "a machine with more memory"),
    ],
)
def test_a_full_gpu_is_one_sentence_with_what_the_verb_can_change(
    options: dict[str, object], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problems: list[RuntimeError] = []

    def fill(_: argparse.Namespace) -> None:
        raise problems[-1]

    for problem, reason in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB.\nSee more"), "2.00 GiB"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "Triton Error [CUDA]: out of memory"),
    ):
        problems.append(problem)
        assert cli.execute(fill, argparse.Namespace(**options)) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{reason});" in said and f"; use {remedy}" in said
    problems.append(RuntimeError("another"))
    with pytest.raises(RuntimeError, match="another"):
        cli.execute(fill, argparse.Namespace())
