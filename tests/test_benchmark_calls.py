"""The benchmark of small calls: it runs, and says what each call takes."""

import json

from benchmarks import calls


def test_it_runs(tmp_path, monkeypatch, capsys):
    file = tmp_path / "calls.json"
    monkeypatch.setattr("sys.argv", ["calls", "--rounds", "1", "-o", str(file)])
    calls.main()
    document = json.loads(file.read_text())
    assert {"processor", "cores", "packages"} <= set(document["machine"])
    assert list(document["calls"]) == list(calls.calls())
    assert all(0 < one["least"] <= one["microseconds"] for one in document["calls"].values())
    assert [line.split(" |")[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        f"| {name}" for name in document["calls"]
    ]
