"""``debug=profile`` beyond the ordinary case, which tests/verbs shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_timing import TINY

import kinoscope
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.profiling import Profile


@pytest.mark.parametrize(("steps", "written"), [("{wait: 4}", False), ("{wait: 0, warmup: 1, active: 2}", True)])
def test_a_training_too_short_to_record_says_so(
    steps: str, written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    profile = steps.replace("{", "{_target_: kinoscope.runs.profiling.Profile, _partial_: true, ")
    with caplog.at_level("INFO", logger="kinoscope"):
        run = kinoscope.train([*TINY, f"+callbacks.profile={profile}", "trainer.max_epochs=1", "threads=1"])
    told = {"profile: ": written, "no profile: the training ended before its step 7": not written}
    for words, expected in told.items():
        assert any(text.startswith(words) for text in caplog.messages) == expected, words
    for name in ("profile.txt", "trace.json"):
        assert (run / name).exists() == written
    if written:
        assert "2 training steps" in (run / "profile.txt").read_text()


@pytest.mark.parametrize("wrong", [{"wait": -1}, {"warmup": -1}, {"active": 0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="active at least 1"):
        Profile(RunFolder(tmp_path), **wrong)
