"""Options of the command line: their spellings, the nearest of what is mistyped, help, completion by a shell."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm import cli
from anynorm._cli.options import COMMANDS, parser_of_all
from tests.files import NORMS, assert_one_line, assert_same_bits, normalize, save_x

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    ("norm", "spelled"),
    [
        ("layer", "layernorm layer_norm layer-norm LayerNorm"),
        ("rms", "rmsnorm rms_norm rms-norm RMSNorm"),
        ("scale", "scalenorm scale_norm scale-norm ScaleNorm l2 L2"),
    ],
)
def test_a_norm_has_the_names_that_others_give_it(norm, spelled):
    x = save_x()
    for one in [norm, *spelled.split()]:
        assert normalize("--norm", one, "-f", "-q") == 0
        assert_same_bits(np.load("y.npy"), NORMS[norm](x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("normalise x.npy", "there is no command 'normalise'; did you mean normalize?"),
        ("x.npy y.npy", "there is no command 'x.npy'; there are normalize, show, bench, warm, info, completion"),
        ("normalize x.npy y.npy --nrom layer", "there is no option --nrom; did you mean --norm?"),
        ("normalize x.npy y.npy --norm layer --wieght=w.npy", "there is no option --wieght; did you mean --weight?"),
        ("show x.npy --jsn", "there is no option --jsn; did you mean --json?"),
        ("show x.npy --xyzzy", "there is no option --xyzzy; anynorm show --help"),
        ("normalize x.npy y.npy --norm layr", "'layr' is not one of layer, rms, scale; did you mean layer?"),
        ("normalize x.npy y.npy --norm softmax", "'softmax' is not one of layer, rms, scale; anynorm"),
        ("normalize x.npy y.npy --norm rms --dtype flaot32", "did you mean float32?"),
        ("normalize x.npy y.npy --norm rms --on-nan kep", "'kep' is not one of keep, fail; did you mean keep?"),
        ("normalize x.npy y --norm rms --to .npz", "did you mean .npy?"),
        ("completion bsh", "'bsh' is not one of bash, zsh, fish, tcsh; did you mean bash?"),
        ("normalize x.npy y.npy --norm rms --threads 0", "'0' is not a number of 1 or more"),
        ("normalize x.npy y.npy --norm rms --axis -1,b", "'-1,b' is not an axis or a list of axes"),
        ("normalize x.npy y.npy --norm rms --eps -b", "expected one argument"),
        ("info x.npy", "'x.npy' is one too many"),
        ("--norm rms normalize x.npy y.npy", "--norm stands before the command; write anynorm normalize, then"),
        ("normalize x.npy y.npy --norm rms --axis -1 -2", "-2 is no file here; several axes are one word"),
        ("show x.npy --norm rms", "there is no option --norm; anynorm show --help"),
        ("bnech", "there is no command 'bnech'; did you mean bench?"),
        ("bench --qiuck", "there is no option --qiuck; did you mean --quick?"),
        ("bench --library tourch", "'tourch' is not one of numpy, torch, jax, onnxruntime, scikit-learn; did you mean"),
        ("bench --shape 3x", "'3x' is not ROWSxFEATURES such as 4096x1024"),
        ("show x.npy --eps 3", "there is no option --eps; anynorm show --help"),
    ],
)
def test_what_is_mistyped_names_the_nearest(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments.split())
    assert message in (error := capsys.readouterr().err)
    assert error.startswith("anynorm")
    assert error.endswith("--help shows what there is\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("--axis -2,-1", {"axis": (-2, -1)}),
        ("--axis -1", {"axis": (-1,)}),
        ("--axis=-2,1", {"axis": (-2, 1)}),
        ("--eps 1e-3 --axis -2", {"axis": (-2,), "eps": 1e-3}),
        ("--norm scale --scale -2.5e-1", {"scale": -0.25}),
        ("--norm scale --scale -.5", {"scale": -0.5}),
    ],
)
def test_numbers_may_be_negative(arguments, options):
    x = save_x()
    assert normalize(*arguments.split(), "-q") == 0
    norm = anynorm.scale_norm if "scale" in options else anynorm.layer_norm
    assert_same_bits(np.load("y.npy"), norm(x, **options))


def test_a_number_that_is_refused_is_not_taken_for_an_option(capsys):
    save_x()
    for given, message in (
        ("--eps -1e-5", "--eps must be finite and not negative, not -1e-05"),
        ("--eps -inf", "-inf"),
    ):
        assert normalize(*given.split()) == 1
        assert_one_line(capsys.readouterr().err, message)


def test_files_stand_before_between_and_after_options():
    x = save_x()
    for arguments in (
        "x.npy y.npy --norm rms", "--norm rms x.npy y.npy", "x.npy --norm rms y.npy", "x.npy --norm rms -o y.npy",
        "-o y.npy --norm rms x.npy", "--norm rms -- x.npy y.npy", "x.npy --norm rms -- y.npy",
    ):  # fmt: skip
        assert cli.main(["normalize", "-f", "-q", *arguments.split()]) == 0
        assert_same_bits(np.load("y.npy"), anynorm.rms_norm(x))
        os.remove("y.npy")


def test_without_a_command_there_is_help(capsys):
    assert cli.main([]) == 2
    out, error = capsys.readouterr()
    assert error == ""
    assert out.startswith("usage: anynorm ")
    assert "layer_norm" not in out  # which the package's docstring lists after its first line
    assert all(re.search(rf"^ +{name} +\S", out, re.MULTILINE) for name in COMMANDS)


def test_python_m_anynorm():
    done = subprocess.run(
        [sys.executable, "-m", "anynorm", "-V"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"anynorm {anynorm.__version__}\n")


def test_each_argument_has_help_and_each_command_an_example(capsys):
    for command in COMMANDS:
        (commands,) = [action for action in parser_of_all()._actions if isinstance(action.choices, dict)]
        arguments = commands.choices[command]._actions
        assert [argument.dest for argument in arguments if not (argument.help or "").strip()] == []
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
        assert re.search(rf"\nexamples?:\n(  .*anynorm {command}\b.*\n)+$", capsys.readouterr().out)


def test_the_examples_of_help_run(capsys):
    np.save("embeddings.npy", save_x())
    for name in ("normalize", "show", "info"):
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])
        example = capsys.readouterr().out.partition("example:\n  ")[2].strip()
        assert cli.main(example.split()[1:]) == 0
    assert Path("unit.npy").exists()


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    for command in COMMANDS:
        found = {}
        for columns in (50, 100):
            monkeypatch.setenv("COLUMNS", str(columns))
            with pytest.raises(SystemExit, match="0"):
                cli.main([command, "--help"])
            description = capsys.readouterr().out.partition("\n\n")[2].partition("example")[0]
            assert max(map(len, description.splitlines())) <= columns
            found[columns] = description
        assert len(found[50].splitlines()) > len(found[100].splitlines())
        assert found[50].split() == found[100].split()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_threads_are_set_for_the_run_alone(monkeypatch, threads):
    save_x()
    seen = []
    really = anynorm._files.job.layer_norm

    def norm(*arguments, **options):
        seen.append(anynorm.get_threads())
        return really(*arguments, **options)

    monkeypatch.setitem(anynorm._files.job._NORMS, "layer_norm", norm)
    before = anynorm.get_threads()
    assert normalize("--threads", threads) == 0
    assert set(seen) == {int(threads)}
    assert anynorm.get_threads() == before


def complete(*lines):
    """What bash offers at the end of each line."""
    asked = "\n".join(
        f"COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}'); COMP_CWORD={len(words) - 1}; COMPREPLY=(); "
        '_shtab_anynorm; echo "${COMPREPLY[@]}"'
        for words in (line.split(" ") for line in lines)
    )
    script = f'eval "$({sys.executable} -m anynorm completion bash)"\n{asked}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    return [offered.split() for offered in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the completion of bash takes bash")
def test_completion_in_bash():
    pytest.importorskip("shtab", reason="the scripts are shtab's")
    save_x()
    asked = {
        "anynorm nor": "normalize", "anynorm normalize --no": "--norm", "anynorm normalize --norm l": "layer",
        "anynorm normalize x": "x.npy", "anynorm show --tensor a x": "x.npy",
    }  # fmt: skip
    for wanted, offered in zip(asked.values(), complete(*asked), strict=True):
        assert wanted in offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_for_each_shell(capsys, shell):
    shtab = pytest.importorskip("shtab", reason="the scripts are shtab's")
    if shell not in shtab.SUPPORTED_SHELLS:
        assert cli.main(["completion", shell]) == 1
        assert_one_line(capsys.readouterr().err, "pip install --upgrade shtab")
        return
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in (*COMMANDS, "in-place"))


def test_one_extra_brings_the_bars_and_all_what_numpy_users_can_use():
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = {extra: {re.split(r"[<>=\[]", one)[0] for one in wanted} for extra, wanted in extras.items()}
    assert names["cli"] == {"rich", "shtab"}
    assert "rich" in names["files"]
    (everything,) = extras["all"]
    assert {"cli", "cpu", "files", "dask", "sklearn"} == set(everything.removeprefix("anynorm[")[:-1].split(","))


def test_completion_without_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert_one_line(capsys.readouterr().err, "pip install shtab")
