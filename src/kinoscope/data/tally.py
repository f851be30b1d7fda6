"""What a prepared video data set holds, as a table to read."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kinoscope.data.keeping import Keeper, is_kept, read_index
from kinoscope.data.lists.listing import SUBSETS
from kinoscope.data.manifest import Manifest
from kinoscope.data.tables import equal, places, taken

NAMED = 3  # bad files named for each reason
REPORTED = 10  # bad files that the log names one by one

log = logging.getLogger("kinoscope")


def tally(manifest: Manifest, keepers: Sequence[Keeper] = ()) -> list[str]:
    """The lines of the table: videos of each subset, what is kept of them, and bad ones by reason.

    Hours and frames are those of good videos; bytes those of all files that are there.
    """
    good, missing = manifest.good(), manifest.missing()
    frames, sizes = manifest.column("frames").astype(np.int64), np.where(missing, 0, manifest.column("bytes"))
    rates = manifest.column("fps").astype(np.float64)
    hours = np.divide(frames, 3600 * rates, out=np.zeros(len(manifest)), where=rates > 0)
    lines = [f"{'videos of':<12} {'listed':>10} {'missing':>9} {'bad':>7} {'frames':>13} {'hours':>9} {'bytes':>9}"]
    every = {subset: manifest.rows(subset) for subset in SUBSETS}
    for name, rows in {**every, "all": np.arange(len(manifest))}.items():
        bad = ~good[rows] & ~missing[rows]
        of_good = rows[good[rows]]
        lines.append(
            f"{name:<12} {len(rows):>10,} {missing[rows].sum():>9,} {bad.sum():>7,} {frames[of_good].sum():>13,} "
            f"{hours[of_good].sum():>9,.2f} {in_bytes(int(sizes[rows].sum())):>9}"
        )
    if keepers:
        lines += ["", f"{'kept':<12} {'files':>10} {'impossible':>10} {'bytes':>9} {'per byte of video':>18}"]
    for keeper in keepers:
        kept, index = is_kept(keeper.folder, manifest), read_index(keeper.folder)
        position = places(manifest.arrow("path"), index.column("path"))
        total = int(taken(index.column("kept"), position, 0).to_numpy()[kept].sum())
        per_byte = total / max(1, int(sizes[kept].sum()))
        lines.append(
            f"{keeper.parameters()['kind']:<12} {kept.sum():>10,} {(good & ~kept).sum():>10,} {in_bytes(total):>9} "
            f"{per_byte:>18.2f}   {keeper.folder}"
        )
        reasons = taken(index.column("error"), position, "").filter(pa.array(good & ~kept))
        lines += _by_reason("not kept", reasons, manifest.arrow("path").filter(pa.array(good & ~kept)))
    bad = pa.array(~good & ~missing)
    return lines + _by_reason("bad", manifest.arrow("error").filter(bad), manifest.arrow("path").filter(bad))


def report(table: pa.Table, rows: NDArray[np.int64]) -> None:
    """Logs what was found in these rows of a manifest."""
    errors = table.column("error").take(pa.array(rows))
    bad = errors.filter(pa.array(~equal(errors, "")))
    for reason in bad.slice(0, REPORTED):
        log.warning("bad video: %s", reason.as_py())
    if len(bad) > REPORTED:
        log.warning("bad videos: %d more; the manifest holds every reason.", len(bad) - REPORTED)
    patchy = int(((table.column("damaged").take(pa.array(rows)).to_numpy() > 0) & equal(errors, "")).sum())
    if patchy:
        log.warning("%d videos hold a few damaged frames and are used.", patchy)


def in_bytes(size: int) -> str:
    """``1.5 GB`` for 1 500 000 000."""
    number, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.95 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def _by_reason(title: str, errors: pa.Array, paths: pa.Array) -> list[str]:
    """One line for all files with the same reason, numbers in it aside, and the first of their names."""
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for error, path in zip(errors, paths, strict=True):
        reason = error.as_py().removeprefix(f"{path.as_py()}: ").rstrip(".") or "unknown"
        kind = re.sub(r"\d+(\.\d+)?", "#", reason)
        counts[kind] += 1
        shown.setdefault(kind, reason)
        if counts[kind] <= NAMED:
            names.setdefault(kind, []).append(path.as_py())
    lines = ["", f"{title:<12} {'videos':>10}"] if counts else []
    for kind, count in counts.most_common():
        more = f" and {count - NAMED:,} more" if count > NAMED else ""
        lines.append(f"{'':<12} {count:>10,}   {shown[kind] if count == 1 else kind}: {', '.join(names[kind])}{more}")
    return lines
