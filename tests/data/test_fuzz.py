"""Damaged files: whatever is wrong with one, it has a reason in the manifest, or gives exactly the frames asked for.

Everything is decoded in children that can be killed, as ``prepare`` does. ``-s`` shows what became of the files.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import damaged
import numpy as np
import pytest

from kinoscope.data import decode
from kinoscope.data.children import in_children
from kinoscope.data.decode import Decoder
from kinoscope.data.lists.listing import VideoEntry, listing
from kinoscope.data.prepare import build

NO_TORCHCODEC = decode.unusable("torchcodec")
IF_TORCHCODEC = pytest.mark.skipif(NO_TORCHCODEC != "", reason=NO_TORCHCODEC)
LIMIT = 120.0  # seconds for one file, of which a good one takes a hundredth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    for name, content in damaged.files():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("decoder", ["pyav", "decord", pytest.param("torchcodec", marks=IF_TORCHCODEC)])
def test_no_hang_no_crash_no_short_read(
    folder: Path, tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) >= 200
    rows = listing(VideoEntry(name, 0, "g01", "train") for name in names)
    manifest = build(folder, rows, tmp_path / "m.arrow", decoder, progress=False, workers=2, time_limit=LIMIT)
    good = manifest.good()
    frames, random_access = manifest.column("frames"), manifest.column("random_access")
    for row in np.flatnonzero(~good).tolist():
        assert manifest.error(row).startswith(f"{names[row]}: ")
        assert manifest.error(row).count("\n") == 0

    calls = [
        [str(folder / names[row]), decoder, int(frames[row]), bool(random_access[row])]
        for row in np.flatnonzero(good).tolist()
    ]
    accepted = [*in_children("damaged:examine", calls, 2, LIMIT)]
    for outcome in accepted:
        assert outcome.fault is None, (calls[outcome.call], outcome.fault)
        assert not outcome.value["faults"], (calls[outcome.call], outcome.value)
    refused = [[str(folder / names[row]), decoder] for row in np.flatnonzero(~good).tolist()]
    ended = 0
    for outcome in in_children("damaged:refuse", refused, 2, LIMIT):
        if outcome.fault is not None:
            # decord aborts where a header announces thousands of millions of frames. Its process ends, and no other.
            assert decoder == "decord", (refused[outcome.call], outcome.fault)
            assert outcome.fault.startswith("ended the process"), (refused[outcome.call], outcome.fault)
            ended += 1
            continue
        assert not outcome.value["faults"], (refused[outcome.call], outcome.value)

    # Both sorts have to be there, or this has shown nothing.
    assert good.sum() > 40
    assert (~good).sum() > 80
    assert random_access[good].sum() > 20
    kinds = Counter(
        name.rsplit(".", 1)[0].rstrip("0123456789-") for name, fine in zip(names, good, strict=True) if fine
    )
    print(f"\n{decoder}: {len(names)} files, {(~good).sum()} with a reason, {good.sum()} of use, "
          f"{random_access[good].sum()} of them by seeking; {ended} ended a child; of use: {dict(kinds)}")  # fmt: skip
