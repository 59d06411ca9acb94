"""The manifest says where numbers come from, and nothing about who made them."""

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qbench.results import origin
from qbench.results.origin import Asked, BadManifest
from qbench.results.private import scrub, scrub_paths


def asked(**fields: object) -> Asked:
    return Asked(**({"suite": "suite: quickstart\n", "seeds": (0, 1), "data": {"stdlib": "ab"}} | fields))  # type: ignore[arg-type]


def test_each_run_on_a_folder_is_a_session(tmp_path: Path) -> None:
    first = origin.begin(tmp_path, asked(options={"profile": "smoke", "workers": 2}))
    killed = origin.read(tmp_path)["sessions"][0]
    assert (killed["finished"], killed["cells"]) == (None, {})
    second = origin.begin(tmp_path, asked(threads=4, device="cuda", gpus=("H100",)))
    sum(i * i for i in range(300_000))
    origin.finish(
        tmp_path, second, {"measured": 3, "failed": 1}, models={"residual, seed 0": "cd"}, cost={"training": 2.5}
    )
    one, two = origin.read(tmp_path)["sessions"]
    assert one == killed
    assert first.number == 0
    assert one["options"] == {"profile": "smoke", "workers": 2}
    assert (two["cells"], two["models"], two["data"]) == (
        {"measured": 3, "failed": 1},
        {"residual, seed 0": "cd"},
        {"stdlib": "ab"},
    )
    assert (two["threads"], two["device"], two["gpus"], two["seeds"]) == (4, "cuda", ["H100"], [0, 1])
    assert two["started"] <= two["finished"]
    assert 0 < two["cost"]["cpu_seconds"] < 60
    assert 0 < two["cost"]["wall_seconds"] < 60
    assert two["cost"]["training"] == 2.5
    assert 2**20 < two["cost"]["peak_rss_bytes"] < 2**40


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak includes what started the process")
def test_the_peak_is_this_program_s_and_not_that_of_what_started_it() -> None:
    program = "from qbench.results.origin import peak_rss; print(peak_rss())"
    held = bytearray(b"x") * 2**29
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    peak = origin.peak_rss()
    assert peak is not None
    assert int(done.stdout) < len(held) < peak


def test_versions_are_those_installed() -> None:
    found = origin.versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__


def test_the_machine_is_described_without_its_name() -> None:
    machine = origin.machine()
    assert 1 <= machine["cores"] <= (os.cpu_count() or 1)
    assert machine["system"] == platform.system()
    assert platform.node() not in json.dumps(machine)


def test_nothing_private_is_in_a_manifest(tmp_path: Path) -> None:
    here, home = Path.cwd(), Path.home()
    options = {
        "out": tmp_path / "runs",
        "data": [f"{home}/texts/a.txt"],
        "plugin": f"{here}/p.py",
        "suite": str(home),
        "cache": Path("/srv"),
    }
    suite = f"suite: s\ndata: {{path: {home}/x.txt}}  # int4/token\nother: {here}/y.txt\n"
    began = origin.begin(tmp_path, asked(options=options, suite=suite))
    origin.finish(tmp_path, began, {})
    text = (tmp_path / "manifest.json").read_text()
    for secret in (os.uname().nodename, getpass.getuser(), str(home), str(here), str(tmp_path), "\\u0000"):
        assert secret not in text
    session = origin.read(tmp_path)["sessions"][0]
    assert session["suite"] == "suite: s\ndata: {path: ~/x.txt}  # int4/token\nother: ./y.txt\n"
    assert (session["options"]["data"], session["options"]["cache"]) == (["~/texts/a.txt"], ".../srv")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("open('/srv/a b/c')", "open('.../c')"),
        ('File "/opt/x/y.py", line 3', 'File ".../y.py", line 3'),
        (r"C:\Users\someone\file.pt: gone", ".../file.pt: gone"),
        ("file:/srv/data/x.txt file:///srv/data/x.txt", "file:.../x.txt file://.../x.txt"),
        ("https://a.org/b/c and 1/2, nats/token", "https://a.org/b/c and 1/2, nats/token"),
        ("int4/block:32 at blocks.*.out/x", "int4/block:32 at blocks.*.out/x"),
        ("expected /token or /block:32", "expected /token or /block:32"),
        ("/srv/a:/srv/b/c", ".../a:.../c"),
        ("a//b ./x/y ../x/y ~/x/y", "a//b ./x/y ../x/y ~/x/y"),
    ],
)  # fmt: skip
def test_paths_are_cut_and_nothing_else(text: str, public: str) -> None:
    assert scrub_paths(text) == public


def test_a_home_that_is_the_root_is_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/")
    monkeypatch.chdir(tmp_path)  # folders are looked up again
    assert scrub_paths("1/2 of int4/token in /srv/x") == "1/2 of int4/token in .../x"


def test_names_are_taken_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    from qbench.results import private

    monkeypatch.setattr(platform, "node", lambda: "build-box-7")
    monkeypatch.setattr(getpass, "getuser", lambda: "adalove")
    private._names.cache_clear()  # pyright: ignore
    try:
        assert scrub("adalove@build-box-7: no route; adalovely") == "<user>@<host>: no route; adalovely"
        monkeypatch.setattr(getpass, "getuser", lambda: "root")
        private._names.cache_clear()  # pyright: ignore
        assert scrub("root mean square") == "root mean square"
    finally:
        private._names.cache_clear()  # pyright: ignore


def test_revision_is_the_commit_of_the_file(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *who, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    suite = tmp_path / "s.yaml"
    suite.write_text("suite: s\n")
    assert origin.revision(suite) is None
    git("init", "-q")
    assert origin.revision(suite) is None
    git("add", "s.yaml")
    git("commit", "-q", "-m", "m")
    assert origin.revision(suite) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    suite.write_text("suite: t\n")
    assert origin.revision(suite) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    (tmp_path / "untracked.yaml").write_text("")
    assert origin.revision(tmp_path / "untracked.yaml") is None


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"schema": 1}', '{"schema": 9, "sessions": []}', "\x00"])
def test_a_damaged_manifest_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadManifest, match=r"manifest\.json: "):
        origin.read(tmp_path)


@pytest.mark.parametrize(
    ("session", "said"),
    [
        ("x", "'x' is no session"),
        ({"asked": 5}, "asked cannot be '5'"),
        ({"asked": None}, "asked cannot be 'None'"),
        ({"asked": [[1]]}, "asked cannot be"),
        ({"started": "yesterday"}, "started cannot be 'yesterday'"),
        ({"finished": "yesterday"}, "finished cannot be 'yesterday'"),
        ({"finished": "0001-01-01"}, "finished cannot be"),
        ({"finished": 5}, "finished cannot be '5'"),
        ({"suite": None}, "suite cannot be 'None'"),
        ({"seeds": "01"}, "seeds cannot be"),
        ({"cost": {"cpu_seconds": "x"}}, "cost cannot be"),
        ({"cost": {"cpu_seconds": 10**400}}, "cost cannot be"),
        ({"revisions": {"qbench": {"commit": 5}}}, "revisions cannot be"),
    ],
)
def test_an_odd_session_is_said(tmp_path: Path, session: object, said: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "sessions": [{}, session]}))
    with pytest.raises(BadManifest, match=re.escape(f"manifest.json: session 2: {said}")):
        origin.read(tmp_path)


def test_what_an_older_or_newer_qbench_wrote_is_read(tmp_path: Path) -> None:
    sessions = [{}, {"finished": None, "asked": [], "cost": {"peak_rss_bytes": None}, "later": ["x"]}]
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "sessions": sessions}))
    assert origin.read(tmp_path)["sessions"] == sessions


def test_a_crash_while_writing_keeps_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.begin(tmp_path, asked())
    before = (tmp_path / "manifest.json").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        origin.begin(tmp_path, asked())
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
