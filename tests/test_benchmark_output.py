"""The files that benchmarks are to write: refused before anything is measured."""

from argparse import ArgumentParser

import pytest

from benchmarks import bounds, calls, cpu, errors, start
from benchmarks.gpu import __main__ as gpu
from benchmarks.models import smollm2_speed
from benchmarks.output import add_output
from benchmarks.slowest import __main__ as slowest


def test_a_path_that_can_be_written(tmp_path):
    parser = ArgumentParser()
    add_output(parser, "")
    assert parser.parse_args(["-o", "here.json"]).output.name == "here.json"
    assert parser.parse_args(["-o", str(tmp_path / "there.json")]).output == tmp_path / "there.json"
    assert parser.parse_args([]).output is None


@pytest.mark.parametrize(
    "main", [bounds.main, calls.main, cpu.main, errors.main, gpu.main, slowest.main, smollm2_speed.main, start.main]
)
def test_paths_that_cannot(main, tmp_path, monkeypatch, capsys):
    for output, said in ((tmp_path / "no" / "x.json", "there is no folder"), (tmp_path, "is a folder")):
        monkeypatch.setattr("sys.argv", ["command", "-o", str(output)])
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().err
