"""Every command as a user types it: files, sentences, exit codes. On Moji unless said; sizes are the smallest that mean something."""

import json
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toys import pipeline

from efface import cli, load, load_edit
from efface.benchmarks.spec import Sampler


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `efface WORDS`, with line breaks of narrow terminals taken out."""
    argv, sys.argv = sys.argv, ["efface", *words]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the edit is that `tiger` fits, once it has."""
    return tmp_path_factory.mktemp("kept") / "tiger.safetensors"


@pytest.fixture
def tiger(capsys, kept: Path) -> Path:
    """An edit, fitted by the command line."""
    if not kept.exists():
        code, _, errors = run(capsys, "erase", "tiger", "--to", "cat", "--preserve", "lion,leopard", "-o", str(kept))
        assert code == 0, errors
    return Path(shutil.copy(kept, "tiger.safetensors"))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moji's benchmark with a sampler of two steps: what is asked of its files does not depend on how good the pictures are."""
    monkeypatch.setattr("efface.benchmarks.moji.Sampler", partial(Sampler, steps=2))


def test_help_and_version_are_quick_to_import():
    code = "import sys; sys.argv = ['efface', '--help']\nfrom efface.cli import main\nmain()\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        "demo",
        "methods",
        "models",
        "erase",
        "generate",
        "evaluate",
        "show",
        "bake",
        "bench",
        "report",
        "doctor",
    ):
        assert command in done.stdout


def test_erase_show_generate_bake(capsys, tiger: Path):
    edit = load_edit(tiger)
    assert [(c.name, c.target) for c in edit.header.erase] == [("tiger", "cat")]
    code, out, _ = run(capsys, "show", str(tiger))
    assert code == 0
    assert '"method": "UCE"' in out
    assert '"lion"' in out
    code, out, errors = run(
        capsys, "generate", "a tiger", "--edit", str(tiger), "--compare", "-n", "2", "--steps", "4", "-o", "t.png"
    )
    assert code == 0, errors
    from PIL import Image

    sheet = Image.open("t.png")
    assert sheet.size == (256, 256)  # two pictures a row at 128 px, unedited above edited
    assert sheet.crop((0, 0, 256, 128)).tobytes() != sheet.crop((0, 128, 256, 256)).tobytes()
    code, out, errors = run(capsys, "bake", str(tiger), "-o", "baked")
    assert code == 0, errors
    assert (Path("baked") / "model_index.json").is_file()
    code, _, errors = run(capsys, "bake", str(tiger), "-o", "baked")
    assert code == 2
    assert "exists already" in errors


def test_export_writes_a_lora_and_says_what_is_lost(capsys, tiger: Path):
    from safetensors import safe_open

    code, out, errors = run(capsys, "export", str(tiger), "-o", "lora.safetensors")
    assert code == 0, errors
    assert "leaves nothing out" in out
    code, out, errors = run(capsys, "export", str(tiger), "--to", "kohya", "--rank", "2", "-o", "small.safetensors")
    assert code == 0, errors
    assert "a kohya LoRA of rank 2, which leaves out" in out
    with safe_open("small.safetensors", "pt") as f:
        assert f.metadata()["modelspec.title"] == "UCE: tiger"
        assert sum(k.endswith(".alpha") for k in f.keys()) > 10  # noqa: SIM118
    code, _, errors = run(capsys, "export", str(tiger), "--to", "khoya", "-o", "other.safetensors")
    assert code == 2
    assert "did you mean 'kohya'" in errors


@pytest.mark.usefixtures("few_steps")
def test_evaluate_writes_a_report_and_its_store_is_kept_in_order(capsys, tiger: Path):
    from efface.benchmarks.moji import erasing
    from efface.benchmarks.store import Store

    words = ["evaluate", str(tiger), "--size", "smoke", "-o", "out"]
    code, out, errors = run(capsys, *words)
    assert code == 0, errors
    assert "unedited" in out
    page = (Path("out") / "report.html").read_text()
    assert json.loads((Path("out") / "run.json").read_text())["concept"]["target"] == "cat"  # what the edit was told
    assert "data:image/png;base64," in page
    rows = (Path("out") / "scores.jsonl").read_text().splitlines()
    assert sum('"score": "top1"' in row for row in rows) == 2 * len(erasing(["tiger"], "smoke").cells)
    code, out, errors = run(capsys, "report", "out", "-o", "again.html")
    assert code == 0, errors
    assert Path("again.html").read_text() == page
    shutil.copytree("out", "other")
    code, out, errors = run(capsys, "compare", "out", "other", "-o", "both.html")
    assert code == 0, errors
    assert "tiger" in Path("both.html").read_text()

    store = Store("out/store")
    (name, cell), *_ = [(n, c) for n, c in store.cells() if c["edit"]]
    path = Path("out/store") / store.picture_path(name)
    path.write_bytes(b"damaged")
    store.put_error({**cell, "seed": 99}, "RuntimeError: no luck")
    code, out, _ = run(capsys, "runs", "out/store", "--verify")
    assert (code, path.exists()) == (1, True)
    assert "1 file damaged:" in out
    assert out.endswith("Next: efface runs out/store --repair\n")
    code, out, _ = run(capsys, "runs", "out/store", "--repair", "--compact")
    assert code == 0
    assert "1 file repaired:" in out
    assert "1 x RuntimeError: no luck" in out
    assert not path.exists()
    code, out, _ = run(capsys, "runs", "out/store", "--retry")
    assert "1 errors removed" in out
    assert store.failures() == []
    code, _, errors = run(capsys, *words)  # draws what is gone
    assert code == 0, errors
    assert path.exists()
    assert (Path("out") / "scores.jsonl").read_text().splitlines() == rows
    code, out, _ = run(capsys, "runs", "out/store", "--remove", cell["edit"])
    assert "14 pictures of edit" in out
    code, _, errors = run(capsys, "runs", "nowhere")
    assert code == 2
    assert "is no store" in errors
    assert not Path("nowhere").exists()


def test_lists(capsys):
    code, out, _ = run(capsys, "methods")
    assert code == 0
    assert "uce" in out
    assert "esd-x" in out
    code, out, _ = run(capsys, "methods", "esd-x")
    assert code == 0
    assert "--sampler-steps" in out
    assert "arXiv:2303.07345" in out
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert "moji" in out
    code, out, _ = run(capsys, "benchmarks")
    assert code == 0
    assert "unlearncanvas" in out
    code, out, _ = run(capsys, "benchmarks", "celebrities")
    out = " ".join(out.split())  # lines are as long as the terminal is wide
    assert "3750 of the unedited model" in out
    assert "yours, --judge concept=DETECTOR" in out
    assert "humpbacked" in out  # the negative prompt


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["erase", "tiger", "--method", "ucee"], 2, "did you mean 'uce'"),
        (["erase", " "], 2, "the name is empty"),
        (["erase", "tiger", "--to", "Tiger"], 2, "its own target"),
        (["erase", "tiger", "--preserve", "lion,tiger"], 2, "both erased and preserved"),
        (["erase", "tiger", "--preserve", "@none.txt"], 2, "no such file"),
        (["erase", "beer", "--preserve", "alcohol"], 2, "'beer' is both erased and preserved"),
        (["erase", "@none.txt"], 2, "no such file 'none.txt'"),
        (["erase", "tiger", "--preserve", "lion;rose"], 2, "expected names separated by commas"),
        (["generate", "a tiger", "--guidance", "nan"], 2, "--guidance: expected from -1000 to 1000, got nan"),
        (["generate", "a tiger", "-o", "p.gif"], 2, "ends in .png, .jpg, .jpeg, .webp, or a folder"),
        (["generate", "a tiger", "--key", "k.safetensors"], 2, "--key: expected an edit"),
        (["show", "x" * 300], 1, "File name too long"),
        (["erase", "tiger", "--ridgee", "1"], 2, "unknown hyper-parameter 'ridgee'; did you mean 'ridge'"),
        (["erase", "tiger", "--ridge", "much"], 2, "expected float, got 'much'"),
        (["erase", "tiger", "--ridge", "0"], 2, "expected above 0"),
        (["erase", "tiger", "--tokens", "first"], 2, "unknown value 'first'"),
        (["erase", "tiger", "-o", "edit.pt"], 2, "ends in .safetensors"),
        (["erase", "tiger", "--model", "no/where/at/all"], 2, "the folder 'no/where/at/all' does not exist"),
        (["erase", "tiger", "--model", "./sd14"], 2, "the folder './sd14' does not exist"),
        (["erase", "tiger", "--model", "~/sd14"], 2, "the folder '~/sd14' does not exist"),
        (["erase", "tiger", "--model", "sd14"], 2, "is neither a folder nor a Hub id"),
        (["erase", "tiger", "--model", "."], 2, "expected model_index.json in"),
        (["erase", "tiger", "--model", "an/other.ckpt"], 2, "the file 'an/other.ckpt' does not exist"),
        (["erase", "tiger", "-m", "uce"], 2, "expected a concept or a --flag, got '-m'"),
        (["erase", "tiger", "--kind", "stile"], 2, "did you mean 'style'"),
        (["erase", "tiger", "--seed", str(2**64)], 2, "--seed"),
        (["erase", "tiger", "--method", "sld", "--preserve", "lion"], 2, "--preserve: expected none, since sld"),
        (["erase", "tiger", "--device", "gpu"], 2, "device: cannot use 'gpu'"),
        (["erase", "tiger", "-o", "."], 2, "ends in .safetensors"),
        (["generate", "a [/tiger]", "--edit", "[/none].safetensors"], 2, "[/none].safetensors: no such file"),
        (["evaluate", "a/edit.safetensors", "b/edit.safetensors"], 2, "different names, none of them base, got 'edit'"),
        (["evaluate", "base.safetensors"], 2, "none of them base, got 'base'"),
        (["generate", "a tiger", "--edit", "none.safetensors"], 2, "no such file"),
        (["generate"], 2, "Missing argument"),
        (["evaluate", "none.safetensors"], 2, "no such file"),
        (["bench", "--size", "quik"], 2, "did you mean 'quick'"),
        (["bench", "--methods", "uce,esdx"], 2, "unknown 'esdx'"),
        (["bench", "--concepts", "tigger"], 2, "did you mean 'tiger'"),
        (["bench", "--methods", ","], 2, "--methods: nothing given"),
        (["bench", "--seeds", "one"], 2, "--seeds: expected numbers"),
        (["bench", "--judge", "concept"], 2, "--judge: expected NAME=VALUE, got 'concept'"),
        (["bench", "--judge", "face=nudenet"], 2, "moji has no judge 'face'; it has concept, style, pair"),
        (["bench", "--benchmark", "i2pp"], 2, "did you mean 'i2p'"),
        (["bench", "--benchmark", "i2p"], 2, "needs the prompts 'i2p', which efface does not ship"),
        (["bench", "--benchmark", "i2p", "--file", "i2p=none.csv"], 2, "none.csv: no such file of prompts"),
        (["bench", "--benchmark", "i2p", "--concepts", "tiger"], 2, "--concepts: expected none for i2p"),
        (["evaluate", "none.safetensors", "--size", "quik"], 2, "no such file"),
        (["report", "nowhere"], 2, "nothing there; give a folder"),
        (["compare", "nowhere", "there"], 2, "nowhere"),
        (["benchmarks", "celebs"], 2, "did you mean 'celebrities'"),
        (["unknown"], 2, "No such command"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("untyped")
def test_wrong_arguments_are_one_sentence(capsys, words: list[str], code: int, sentence: str):
    got, _, errors = run(capsys, *words)
    assert got == code, errors
    assert sentence in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list(Path().glob("*.safetensors"))


def test_wrong_files_are_one_sentence(capsys, tiger: Path):
    Path("cut.safetensors").write_bytes(tiger.read_bytes()[:-100])
    save_file({"x": torch.zeros(1)}, "foreign.safetensors")
    torch.save({"x": torch.zeros(1)}, "pickle.safetensors")
    for name, code, sentence in (
        ("cut", 1, "damaged"),
        ("foreign", 2, "expected an edit of efface"),
        ("pickle", 2, "this is a pickle"),
    ):
        got, _, errors = run(capsys, "show", f"{name}.safetensors")
        assert got == code
        assert sentence in errors
        assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["sd.ckpt", "sd.safetensors", "sd.pt"])
def test_a_file_is_no_model(capsys, name: str):
    Path(name).write_bytes(b"weights")
    code, _, errors = run(capsys, "erase", "tiger", "--model", name)
    assert code == 2
    assert f"expected a diffusers folder, got one file in {name!r}" in errors
    assert ("pickle" in errors) is (name != "sd.safetensors")
    assert "from_single_file" in errors
    assert len(errors.strip().splitlines()) == 1


def test_no_training_for_a_file_that_cannot_be_written(capsys, folder: Path):
    (folder / "folder.safetensors").mkdir()
    (folder / "list.txt").write_bytes("café".encode("latin-1"))
    words = ["erase", "tiger", "--method", "esd-x", "--steps", "1", "--sampler-steps", "2"]
    for wrong, code, sentence in (
        (["-o", "folder.safetensors"], 2, "expected a file's name, got a folder"),
        (["-o", "list.txt/edit.safetensors"], 2, "list.txt is a file, not a folder"),
        (["--method", "spm", "--preserve", "@list.txt"], 2, "expected text in UTF-8"),
    ):
        got, _, errors = run(capsys, *words, *wrong)
        assert got == code, errors
        assert sentence in errors
        assert "steps" not in errors  # no bar was drawn
        assert sorted(p.name for p in folder.iterdir()) == ["folder.safetensors", "list.txt"]


def test_several_edits_are_baked_and_exported_as_one(capsys, tiger: Path, folder: Path):
    code, _, errors = run(capsys, "erase", "a van gogh", "--kind", "style", "-o", "style.safetensors")
    assert code == 0, errors
    one, two = load_edit(tiger), load_edit("style.safetensors")
    assert two.header.erase[0].kind == "style"
    code, out, errors = run(capsys, "bake", str(tiger), "style.safetensors", "-o", "baked", "--dtype", "float32")
    assert code == 0, errors
    assert "tiger and a van gogh" in out
    base = load("moji")
    whole, baked = (one + two)(base).params("xattn.kv"), load(folder / "baked").params("xattn.kv")
    for name, w in whole.items():
        torch.testing.assert_close(baked[name], w)
    code, out, errors = run(capsys, "export", str(tiger), "style.safetensors", "-o", "lora.safetensors")
    assert code == 0, errors
    assert "leaves nothing out" in out


def test_an_edit_for_another_base_is_refused(capsys, tiger: Path):
    from dataclasses import replace

    edit = load_edit(tiger)
    edit.stamped(replace(edit.header, base="0" * 16, signature="")).save("other.safetensors")
    words = ["generate", "a tiger", "--edit", "other.safetensors", "-n", "1", "--steps", "1"]
    code, _, errors = run(capsys, *words)
    assert code == 2
    assert "made for base 0000000000000000" in errors
    code, _, errors = run(capsys, *words, "--any-base")
    assert code == 0, errors


def pasted(out: str) -> list[str]:
    """The words of the command that an output names to be run next."""
    (line,) = [line for line in out.splitlines() if line.startswith("Next: ")]
    first, *words = shlex.split(line.removeprefix("Next: "))
    assert first == "efface"
    return words


def test_the_next_command_can_be_pasted_and_run(capsys, folder: Path):
    from efface.models import HERE

    (folder / "my models").mkdir()
    (folder / "my models" / "moji").symlink_to(HERE / "moji")
    words = ["erase", "noto", "--kind", "style", "--model", "my models/moji", "-o", "no noto.safetensors"]
    code, out, errors = run(capsys, *words)
    assert code == 0, errors
    said = pasted(out)
    assert said == [
        "generate", "a picture in noto style", "--edit", "no noto.safetensors", "--compare", "--model", "my models/moji",
    ]  # fmt: skip
    code, out, errors = run(capsys, *said, "-n", "1", "--steps", "1")
    assert code == 0, errors
    assert "unedited above edited" in out
    for command in ("methods", "benchmarks"):
        code, out, _ = run(capsys, command)
        assert run(capsys, *pasted(out))[0] == code == 0


def test_groups_are_preserved_by_their_members(capsys):
    code, out, errors = run(capsys, "erase", "owl", "--preserve", "alcohol,tiger", "-o", "owl.safetensors")
    assert code == 0, errors
    assert {"beer", "wine", "tiger"} <= {c.name for c in load_edit("owl.safetensors").header.preserve}
    assert "alcohol" not in {c.name for c in load_edit("owl.safetensors").header.preserve}
    assert pasted(out)[1] == "an owl"


def test_an_edit_without_a_recipe_is_applied(capsys, tiger: Path):
    from efface.core.edit import Header

    load_edit(tiger).stamped(Header("")).save("bare.safetensors")
    code, _, errors = run(capsys, "generate", "a tiger", "--edit", "bare.safetensors", "-n", "1", "--steps", "1")
    assert code == 0, errors
    code, out, errors = run(capsys, "bake", "bare.safetensors", "-o", "baked")
    assert code == 0, errors
    assert "moji without the edit's concepts" in out
    code, _, errors = run(capsys, "evaluate", "bare.safetensors")
    assert code == 2
    assert "expected concepts in the header of" in errors


def test_interrupted_training_continues(capsys, monkeypatch: pytest.MonkeyPatch):
    pipeline().save_pretrained("toy")  # thirty steps on Moji show no more
    sizes = ["--steps", "30", "--batch", "2", "--sampler-steps", "3", "--where", "xattn.kv"]
    words = ["erase", "tiger", "--model", "toy", "--method", "esd-x", *sizes]
    from efface.core.train import Tuner

    step, count = Tuner.step, []

    def interrupted(self, loss):
        count.append(1)
        if len(count) == 28:  # after the checkpoint at 25
            raise KeyboardInterrupt
        step(self, loss)

    code, _, errors = run(capsys, *words, "-o", "whole.safetensors")
    assert code == 0, errors
    monkeypatch.setattr(Tuner, "step", interrupted)
    code, _, errors = run(capsys, *words, "-o", "parts.safetensors")
    assert code == 130
    assert "last checkpoint" in errors
    assert not Path("parts.safetensors").exists()
    assert Path(".parts.safetensors.training").exists()
    monkeypatch.setattr(Tuner, "step", step)
    code, _, errors = run(capsys, *words, "-o", "parts.safetensors")
    assert code == 0, errors
    assert not Path(".parts.safetensors.training").exists()
    whole, parts = (load_edit(f"{n}.safetensors").tensors() for n in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_traceback_only_with_debug(capsys):
    with pytest.raises(Exception, match="no such file"):
        run(capsys, "show", "none.safetensors", "--debug")


def test_each_next_command_is_one_that_runs(capsys, folder: Path):
    code, out, errors = run(capsys, "erase", "noto", "--kind", "style", "--dtype", "bfloat16", "-o", "noto.safetensors")
    assert code == 0, errors
    assert pasted(out)[-2:] == ["--dtype", "bfloat16"]
    code, out, errors = run(capsys, "evaluate", "noto.safetensors", "--size", "smoke", "--dtype", "bfloat16")
    assert code == 0, errors
    said = pasted(out)
    assert said == ["attack", "noto.safetensors", "--dtype", "bfloat16"]
    code, out, errors = run(capsys, *said, "--with", "inverse", "--size", "smoke")
    assert code == 0, errors
    assert "inverse" in out


def test_a_model_made_elsewhere_is_attacked_and_what_was_found_is_replayed(capsys, folder: Path):
    code, _, errors = run(capsys, "erase", "tiger", "--to", "cat", "-o", "e.safetensors")
    assert code == 0, errors
    code, _, errors = run(capsys, "bake", "e.safetensors", "-o", "baked")
    assert code == 0, errors
    code, _, errors = run(capsys, "attack", "baked", "--with", "inverse", "--size", "smoke")
    assert code == 2
    assert "--concept: expected what the model erased, got none" in errors
    code, out, errors = run(
        capsys, "attack", "baked", "--concept", "tiger", "--with", "rece-rows,inverse", "--size", "smoke", "-o", "a"
    )
    assert code == 0, errors
    assert "inverse was not tried on baked: it needs the edit's file" in out
    assert Path("a/attempts/baked-rece-rows.safetensors").is_file()
    code, out, errors = run(
        capsys, "attack", "e.safetensors", "--with", "inverse", "--replay", "a/attempts", "--size", "smoke", "-o", "b"
    )
    assert code == 0, errors
    assert "replayed rece-rows" in out
    code, _, errors = run(capsys, "attack", "e.safetensors", "--concept", "tiger")
    assert code == 2
    assert "expected none, since the edit's file says what it erases" in errors
    code, _, errors = run(capsys, "attack", "e.safetensors", "--with", "soft*x")
    assert code == 2
    assert "expected a number from 1 to 100 after *" in errors
