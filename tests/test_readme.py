"""What the README tells people to type works, in an empty folder, as it stands."""

import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest

import efface
from efface import cli
from efface.benchmarks.spec import Sampler

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) < 10
    names: dict[str, object] = {}
    exec(code, names)
    assert names["picture"].shape == (64, 64, 3)
    assert Path("tiger.safetensors").stat().st_size < 2**20
    assert isinstance(names["edit"], efface.TextMap)
    assert type(names["edited"].pipeline).__name__ == "StableDiffusionPipeline"


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "efface.benchmarks.moji.Sampler", partial(Sampler, steps=2)
    )  # of pictures nothing is asked here
    (text,) = blocks("console")
    commands = [shlex.split(line) for line in text.splitlines()]
    assert {words[1] for words in commands} == {"erase", "generate", "evaluate", "show", "bake", "export"}
    for words in commands:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0, words
    for made in (
        "tiger.safetensors",
        "tiger.png",
        "tiger/report.html",
        "moji-without-tiger/model_index.json",
        "tiger-lora.safetensors",
    ):
        assert Path(made).is_file(), made


def test_every_command_of_the_readme_exists():
    known = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    told = set(re.findall(r"`efface (\w+)", README)) | set(re.findall(r"^ *efface (\w+)", README, re.MULTILINE))
    assert told <= known
    assert known - told <= {"demo"}  # `make demo`
