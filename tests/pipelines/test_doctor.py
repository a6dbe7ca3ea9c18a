"""`pretext doctor`: a healthy machine passes every check, and each finding on another says how to mend it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from components.corpus.corpus import Corpus
from pipelines import doctor
from pipelines.cli import main
from pipelines.doctor import Finding, examine
from pipelines.summary import show_findings
from ssl_core.data.decode import SampleFormat

SUBJECTS = ("python", "packages", "home", "memory", "shared memory", "accelerators", "collectives", "decoding")
SUBJECTS += ("ray", "mlflow", "corpora")


def looked_at(monkeypatch: pytest.MonkeyPatch, *subjects: str) -> dict[str, Finding]:
    """The findings of some checks; the others, which take seconds, say ok."""
    for subject in set(SUBJECTS) - set(subjects):
        name = f"_{subject.replace(' ', '_')}"
        monkeypatch.setattr(doctor, name, lambda subject=subject: Finding(subject, "ok", ""))
    return {finding.subject: finding for finding in examine()}


@pytest.mark.usefixtures("ray_cluster")
def test_in_a_healthy_home_every_check_is_made_and_ok(home: Path) -> None:
    Corpus.create("photos", SampleFormat(size=8))
    found = {finding.subject: finding for finding in examine()}
    assert tuple(found) == SUBJECTS
    bad = [finding for finding in found.values() if finding.state == "fail"]
    assert not bad
    assert all(
        found[subject].state == "ok" for subject in ("python", "packages", "decoding", "ray", "mlflow", "corpora")
    )
    assert f"{home} is writable" in found["home"].detail and "GiB free" in found["home"].detail
    assert "summed a tensor" in found["collectives"].detail and "CPUs, answered in" in found["ray"].detail
    assert found["mlflow"].detail == f"sqlite:///{home / 'mlflow.db'} answers" and (home / "mlflow.db").exists()
    assert found["corpora"].detail == "photos (version 0)"
    assert all(f"{name} " in found["packages"].detail for name in ("torch", "ray", "mlflow", "pyarrow", "deltalake"))


def test_a_home_that_cannot_be_written_fails_and_the_finding_says_how_to_mend_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / "file" / "home"))
    finding = looked_at(monkeypatch, "home")["home"]
    assert finding.state == "fail"
    assert finding.detail == (
        f"{tmp_path}/file/home cannot be written: Not a directory; set PRETEXT_HOME to a folder that you may write in"
    )


def test_a_home_with_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2 * doctor.GIB}))
    finding = looked_at(monkeypatch, "home")["home"]
    assert finding.state == "warn" and "2 GiB free; free some, or set PRETEXT_HOME" in finding.detail


def test_a_damaged_corpus_is_named_with_what_to_do_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    for name in ("broken", "photos"):
        Corpus.create(name, SampleFormat(size=8))
    (log,) = (home / "corpora" / "broken" / "_delta_log").glob("*.json")
    log.write_text("{ this is no log")
    finding = looked_at(monkeypatch, "corpora")["corpora"]
    assert finding.state == "fail"
    assert finding.detail.startswith(f"broken cannot be read: {home}/corpora/broken: ")
    assert finding.detail.endswith("; move it out of the home and ingest it again")
    assert "photos" not in finding.detail


def test_no_corpus_yet_is_fine_and_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = looked_at(monkeypatch, "corpora")["corpora"]
    assert finding.state == "ok" and "pretext ingest SOURCE --corpus NAME" in finding.detail


def test_a_tracker_that_is_down_fails_and_the_finding_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:secret@127.0.0.1:1")
    finding = looked_at(monkeypatch, "mlflow")["mlflow"]
    assert finding.state == "fail"
    assert "http://127.0.0.1:1 does not answer; start it, or name another one" in finding.detail
    assert "secret" not in finding.detail


def test_a_cluster_that_is_down_is_named_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test's cluster may be up
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    finding = looked_at(monkeypatch, "ray")["ray"]
    assert finding.state == "fail" and "the Ray cluster at 127.0.0.1:1 does not answer" in finding.detail


def test_a_check_that_breaks_is_a_finding_and_the_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("libcuda is too old\nand a long trace")

    monkeypatch.setattr(doctor, "accelerators", broken)
    found = looked_at(monkeypatch, "accelerators")
    assert found["accelerators"] == Finding("accelerators", "fail", "RuntimeError: libcuda is too old")
    assert tuple(found) == SUBJECTS


def test_a_python_that_is_too_old_fails_and_little_memory_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 3 * doctor.GIB}))
    found = looked_at(monkeypatch, "python", "memory")
    assert found["python"] == Finding("python", "fail", "3.10.4; pretext needs 3.11 or newer")
    assert found["memory"].state == "warn" and "--set cluster.workers=1" in found["memory"].detail


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_command_prints_json_and_exits_with_1_where_something_failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], state: str, status: int
) -> None:
    findings = [Finding("python", "ok", "3.11"), Finding("mlflow", state, "http://host does not answer")]  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    monkeypatch.setattr(sys, "argv", ["pretext", "doctor", "-o", "json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code or 0) == status
    assert json.loads(capfd.readouterr().out) == [asdict(finding) for finding in findings]


def test_the_table_has_a_line_for_each_finding(capfd: pytest.CaptureFixture[str]) -> None:
    assert show_findings([Finding("home", "warn", "2 GiB free")], as_json=False)
    assert not show_findings([Finding("ray", "fail", "away")], as_json=False)
    assert [line.split() for line in capfd.readouterr().out.splitlines()] == [
        ["warn", "home", "2", "GiB", "free"],
        ["fail", "ray", "away"],
    ]
