"""What the command line, a studio and a notebook share: words, lists, plans, edits from files; and what is said without torch."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toys

from efface import Concept, TextMap, UsageError, api, cli
from efface.benchmarks.measure import KINDS
from efface.benchmarks.moji import SIZES, erasing, tasks
from efface.benchmarks.spec import MEASURES
from efface.core.declared import declared
from efface.core.edit import Header
from efface.core.lists import Entry
from efface.core.params import fields
from efface.erasers import TABLE, find, names, settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- declarations without torch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_the_declarations_that_are_read_are_those_of_the_class(name: str) -> None:
    light, real = declared(*TABLE[name].split(":")), find(name)
    said = [
        [(f.name, f.default, str(f.type).replace("efface.core.declared", ""), dict(f.metadata)) for f in fields(cls)]
        for cls in (light, real)
    ]
    assert said[0] == said[1]
    for fact in ("__name__", "__doc__", "keeps", "needs", "presets"):
        assert getattr(light, fact) == getattr(real, fact), fact
    assert [k.__name__ for k in light.makes] == [k.__name__ for k in real.makes]
    assert api.method(name).paper == (sys.modules[real.__module__].__doc__ or "").strip()


def test_lists_and_wrong_arguments_are_answered_without_torch(folder: Path) -> None:
    edit = TextMap(torch.zeros(4, 1), torch.ones(4, 1), Header("UCE", erase=(Concept("tiger"),)))
    edit.save("edit.safetensors")
    code = """
import sys
from efface import cli
for words in ["--help", "methods", "methods esd-x", "models", "benchmarks", "benchmarks celebrities", "show edit.safetensors",
              "erase tiger --method ucee", "erase tiger --ridgee 1", "erase tiger --ridge 0", "erase tiger --model no/where/at/all",
              "erase ; -o a.safetensors", "bench --methods uce,esdx", "bench --concepts tigger", "generate x --guidance nan"]:
    sys.argv = ["efface", *words.split()]
    try:
        cli.main()
    except SystemExit as end:
        print("END", end.code, words)
    heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ends = [line.split(" ", 2)[1] for line in done.stdout.splitlines() if line.startswith("END")]
    assert ends == ["0"] * 7 + ["2"] * 8, done.stdout


def test_every_method_is_one_line_of_eighty_columns(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["efface", "methods"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    told = {line.split()[0]: line.split()[-1] for line in lines[: len(TABLE)]}
    assert list(told) == list(TABLE)
    assert set(told.values()) == {"none", "seconds", "minutes"}
    assert (told["uce"], told["esd"], told["sld"]) == ("seconds", "minutes", "none")


@pytest.mark.parametrize("name", names())
def test_a_method_is_explained_in_eighty_columns(name: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["efface", "methods", name])
    monkeypatch.setattr(cli.out, "width", 80)
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert not wide
    own, preset = settings(name)
    said = " ".join(text.split())
    for word in " ".join((sys.modules[find(own).__module__].__doc__ or "").split()).split():
        assert word in said  # nothing of the paper is lost or broken
    for f in fields(find(own)):
        value = preset.get(f.name, f.default)
        assert f"--{f.name.replace('_', '-')} {value!r}" in said or f"--{f.name.replace('_', '-')} {value}" in said
    for one in find(own).presets:
        assert f"{own}-{one} " in said


# -- lists and concepts --------------------------------------------------------------------------------------------


def test_the_command_of_a_plan_is_the_one_that_was_given(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("name,to,kind,preserve\ntiger,cat,,lion\nAnsel Adams,,style,\n")
    plan = api.plan([f"@{table}"], preserve="rose", kind="mark", flags={"ridge": "0.5"})
    assert plan.erase == (Concept("tiger", "cat", kind="mark"), Concept("Ansel Adams", kind="style"))
    assert [c.name for c in plan.preserve] == ["rose", "lion"]
    words = shlex.split(plan.command)
    given = ["efface", "erase", f"@{table}", "--kind", "mark", "--preserve", "rose"]
    assert words == [*given, "--method", "uce", "--ridge", "0.5", "-o", "edit.safetensors"]
    table.write_text("name,to,prompts,preserve\ntiger,cat,big cat,rose\nnoto,,,\n")
    made = list(api.sweep("uce", concepts=f"@{table}").benchmark.made())
    assert made[0].erase == (Concept("tiger", "cat", ("big cat",)),)
    assert "rose" in [c.name for c in made[0].preserve]
    assert made[1].name == "noto"


@pytest.mark.parametrize(
    ("names", "flags", "sentence"),
    [
        (["tiger", "Tiger"], {}, "erase: 'tiger' is given twice"),
        (["tiger"], {"preserve": "lion,tiger"}, "erase: 'tiger' is both erased and preserved"),
        (["beer"], {"preserve": "alcohol"}, "erase: 'beer' is both erased and preserved"),
    ],
)
def test_what_contradicts_itself_is_refused_before_a_model_is_loaded(
    names: list[str], flags: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        api.plan(names, **flags)  # pyright: ignore[reportArgumentType]


def test_a_name_that_the_text_encoder_cuts_off_is_refused() -> None:
    plan = api.plan(["tiger"], preserve="a picture of a happy king and his red boat of stone", model="moji")
    with pytest.raises(
        UsageError,
        match="erase: the text encoder does not read all of 'a picture of a happy king and his",
    ):
        api.erase(plan, base=toys.tiny())


def test_a_task_of_several_concepts_takes_no_target(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("name,to\nalcohol,milk\n")
    with pytest.raises(UsageError, match="expected the name alone for 'alcohol'"):
        api.sweep("uce", concepts=f"@{table}")
    with pytest.raises(UsageError, match="'tiger' is given twice"):
        api.sweep("uce", concepts="tiger,rose,Tiger")


def test_a_measure_that_does_not_exist_is_refused_before_work() -> None:
    assert tuple(KINDS) == MEASURES
    with pytest.raises(UsageError, match="--measures: unknown 'lpip:64'; did you mean 'lpips'"):
        api.sweep("uce", measures="perceptual,lpip:64")


def test_groups_stand_for_their_members_erased_and_preserved_alike() -> None:
    found = api.concepts(["alcohol"], to="milk")
    assert {c.name for c in found} >= {"beer", "wine"}
    assert {(c.target, c.kind) for c in found} == {("milk", "unsafe")}
    plan = api.plan(["tiger,rose"], preserve="alcohol, noto,beer", to="cat")
    assert [c.name for c in plan.erase] == ["tiger", "rose"]
    assert {c.target for c in plan.erase} == {"cat"}
    assert [c.name for c in plan.preserve] == [*(c.name for c in found), "noto"]
    assert [c.kind for c in plan.preserve] == ["unsafe"] * len(found) + ["style"]
    assert api.concepts([Entry("beer", "milk", "mark", ("ale",)), Entry("owl", "")], to="tea") == (
        Concept("beer", "milk", ("ale",), "mark"), Concept("owl"),
    )  # fmt: skip
    assert api.concepts(["alcohol"], "some/model") == (Concept("alcohol"),)
    assert api.concepts(["Zebra crossing"], kind="mark") == (Concept("Zebra crossing", kind="mark"),)


@pytest.mark.parametrize(
    ("concept", "prompt"),
    [
        (Concept("tiger"), "a tiger"),
        (Concept("owl"), "an owl"),
        (Concept("the moon"), "the moon"),
        (Concept("noto", kind="style"), "a picture in noto style"),
        (Concept("Ansel Adams", kind="style"), "a picture in Ansel Adams style"),
        (Concept("Ada Lovelace", kind="person"), "a picture of Ada Lovelace"),
    ],
)
def test_a_concept_in_a_sentence(concept: Concept, prompt: str) -> None:
    assert api.prompt(concept) == prompt


# -- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        {"names": ["tiger"], "output": Path("my edit.safetensors")},
        {"names": ["alcohol"], "method": "esd-x", "flags": {"steps": "3", "where": "xattn.kv"}, "seed": 7},
        {"names": ["noto"], "to": "twemoji", "preserve": '"snow, ice",fluent', "device": "cuda:1"},
        {
            "names": ['"snow, ice"'],
            "kind": "mark",
            "model": "some/model",
            "flags": {"ridge": "0.25", "templates": "false"},
        },
    ],
)
def test_the_command_of_a_plan_makes_the_same_plan(plan: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, seen = api.plan(**plan), []

    def erase(plan: api.Plan, log: object) -> None:
        seen.append(plan)
        raise UsageError("seen")

    monkeypatch.setattr(api, "erase", erase)
    monkeypatch.setattr(sys, "argv", shlex.split(asked.command))
    with pytest.raises(SystemExit):
        cli.main()
    assert seen == [asked]


def test_the_commands_of_the_demo_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list = []

    def evaluate(paths: list[Path], **given: object) -> api.Measured:
        done.append((paths, {k: given[k] for k in ("output", "size")}))
        commands.extend(given["commands"] if "base" in given else [])
        return api.Measured(Path("page"), [], [], "store")

    commands: list[str] = []
    monkeypatch.setattr(api, "load", lambda *_: None)
    monkeypatch.setattr(api, "erase", lambda plan, *_: done.append(plan))
    monkeypatch.setattr(api, "evaluate", evaluate)
    api.demo("noto", output=Path("some folder"))
    first = list(done)
    assert [type(one) for one in first] == [api.Plan, api.Plan, tuple]
    assert first[0].preserve
    assert all(c.kind == "style" for c in first[0].preserve)
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        monkeypatch.setattr(cli, "_scores", lambda measured: None)
        with pytest.raises(SystemExit):  # with code 1 where `erase`, which makes no edit here, was called
            cli.main()
    assert done == first * 2


def test_the_demo_asks_what_its_size_asks() -> None:
    assert erasing(["tiger"], "demo") == tasks("tiger", **SIZES["demo"])[0]
    assert erasing(["alcohol"], "demo") == tasks("alcohol", **SIZES["demo"])[0]


# -- edits ---------------------------------------------------------------------------------------------------------


def header(*concepts: Concept) -> Header:
    return Header("UCE", erase=concepts)


def test_a_concept_stays_what_it_was_when_it_is_measured() -> None:
    made = {"one": header(Concept("tiger", "cat", ("a big cat",))), "two": header(Concept("Tiger", "cat"))}
    assert api._erased(made) == (Concept("tiger", "cat", ("a big cat",)),)
    made["two"] = header(Concept("tiger"))
    assert api._erased(made) == (Concept("tiger", "cat or nothing", ("a big cat",)),)
    group = api._erased({"one": header(Concept("alcohol", "milk", kind="unsafe"))})
    assert {(c.name, c.target, c.kind) for c in group} >= {("beer", "milk", "unsafe"), ("wine", "milk", "unsafe")}
    task = api._task(api._erased({"one": header(Concept("tiger", "cat"))}), "smoke")
    assert task.erase == (Concept("tiger", "cat"),)
    assert dataclasses.replace(task, erase=()) == dataclasses.replace(erasing(["tiger"], "smoke"), erase=())
    with pytest.raises(UsageError, match="expected edits that erase the same concepts"):
        api._erased({"one": header(Concept("tiger")), "two": header(Concept("rose"))})


def test_an_edit_without_a_recipe_is_shown_and_not_measured(folder: Path) -> None:
    TextMap(torch.zeros(4, 1), torch.ones(4, 1)).save("bare.safetensors")
    shown = api.show(Path("bare.safetensors"))
    assert (shown["method"], shown["erase"], shown["tensors"], shown["numbers"]) == ("", [], 2, 8)
    with pytest.raises(UsageError, match="expected an edit of a method that searches for words"):
        api.show_search(Path("bare.safetensors"), Path("page.html"))
    with pytest.raises(UsageError, match=r"evaluate: expected concepts in the header of bare, got none"):
        api.evaluate([Path("bare.safetensors")])
    assert not (folder / "evaluation").exists()


def test_what_is_shown_is_the_whole_record(folder: Path) -> None:
    one = TextMap(
        torch.zeros(4, 1),
        torch.ones(4, 1),
        Header("UCE", {"ridge": 0.5}, (Concept("tiger", "cat"),), (Concept("lion"),)),
    )
    whole = one + one * 0.5
    whole.save("both.safetensors")
    assert api.show(Path("both.safetensors")) == json.loads(json.dumps({**whole.record(), "tensors": 4, "numbers": 16}))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"guidance": float("nan")}, "--guidance: expected from -1000 to 1000, got nan"),
        ({"guidance": float("inf")}, "--guidance: expected from -1000 to 1000, got inf"),
        ({"output": Path("p.gif")}, "ends in .png, .jpg, .jpeg, .webp, or a folder, got 'p.gif'"),
        ({"output": Path("folder.png")}, "expected a file's name, got a folder"),
        ({"keys": [Path("a.key.safetensors")]}, "--key: expected an edit for the key, got none"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused_before_work(
    given: dict, sentence: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "folder.png").mkdir()
    monkeypatch.setattr(api, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError) as error:
        api.generate("a tiger", **given)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("3,1,3", [3, 1]), ("9223372036854775808", None), ("٣", None), ("²", None), ("-1", None)],
)
def test_training_seeds(text: str, seeds: list[int] | None) -> None:
    if seeds is None:
        with pytest.raises(UsageError, match="--seeds: expected numbers from 0"):
            api.sweep(seeds=text)
    else:
        assert api.sweep(seeds=text).seeds == seeds


def test_names_of_files_that_say_another_kind_are_refused() -> None:
    with pytest.raises(UsageError, match=r"ends in \.html, got 'page.csv'"):
        api.report(Path(), Path("page.csv"))
    with pytest.raises(UsageError, match="expected the name of a folder, got 'x.safetensors'"):
        api.bake([Path("edit.safetensors")], Path("x.safetensors"))


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("[]", "expected a JSON object in"),
        ("{", "is damaged"),
        ("[" * 5000, "is damaged (nested too deeply)"),
        ('{"_class_name": "FluxFillPipeline"}', "got 'FluxFillPipeline'"),
        ("{}", "got ''"),
    ],
)
def test_folders_that_are_no_pipeline(index: str, sentence: str, folder: Path) -> None:
    from efface.models import resolve

    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text(index)
    with pytest.raises(UsageError) as error:
        resolve("model")
    assert sentence in str(error.value)


def test_a_mistyped_folder_is_no_hub_id(folder: Path) -> None:
    from efface.models import resolve

    (folder / "models" / "moji").mkdir(parents=True)
    (folder / "models" / "moji" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UsageError, match=r"no folder 'models/mojy'; did you mean 'models/moji'"):
        resolve("models/mojy")
    assert resolve("models/moji") == "models/moji"
    assert resolve("CompVis/stable-diffusion-v1-4") == "CompVis/stable-diffusion-v1-4"
