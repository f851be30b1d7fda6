"""What is done with a listing whatever the layout: holding out, identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinoscope.data.lists import listing as listings
from kinoscope.data.lists.listing import VideoEntry, counts, hold_out, listing


def entries(classes: int = 3, groups: int = 10, clips: int = 3) -> list[VideoEntry]:
    return [
        VideoEntry(f"{label}/{group}_{clip}.avi", label, f"{label}/{group}", "train")
        for label in range(classes)
        for group in range(groups)
        for clip in range(clips)
    ]


@pytest.mark.parametrize(("share", "held"), [(0, 0), (0.01, 1), (0.1, 1), (0.3, 3), (0.5, 5), (0.99, 9)])
def test_whole_groups_of_every_class_are_held_out(share: float, held: int) -> None:
    rows = hold_out(listing(entries()), share).to_pylist()
    where: dict[str, set[str]] = {}
    for row in rows:
        where.setdefault(row["group"], set()).add(row["subset"])
    assert all(len(subsets) == 1 for subsets in where.values())
    for label in range(3):
        assert sum(where[f"{label}/{group}"] == {"validation"} for group in range(10)) == held


def test_a_single_group_stays_and_other_subsets_are_left_alone() -> None:
    rows = [*entries(1, 1), VideoEntry("0/t.avi", 0, "0/0", "test"), *entries(2)[30:]]
    table = hold_out(listing(rows), 0.5)
    assert table["subset"].to_pylist()[:4] == ["train", "train", "train", "test"]
    assert counts(table) == {"train": 18, "validation": 15, "test": 1}


def test_the_order_of_rows_does_not_matter() -> None:
    def held(rows: list[VideoEntry]) -> set[str]:
        return {row["path"] for row in hold_out(listing(rows), 0.3).to_pylist() if row["subset"] == "validation"}

    assert held(entries()) == held(entries()[::-1])


def test_test_and_validation_are_drawn_apart() -> None:
    both = hold_out(hold_out(listing(entries(1, 1000, 1)), 0.2, "test"), 0.25)
    assert counts(both) == {"train": 600, "validation": 200, "test": 200}


def test_identity_is_of_content_and_not_of_place(tmp_path: Path) -> None:
    rows = entries(2, 2, 1)

    def made(root: Path, size: int = 1) -> Path:
        for row in rows:
            (root / row.path).parent.mkdir(parents=True, exist_ok=True)
            (root / row.path).write_bytes(b"x" * size)
        return root

    names = ["a", "b"]
    identity = listings.fingerprint(listing(rows), made(tmp_path / "one"), names)
    assert listings.fingerprint(listing(rows), made(tmp_path / "two"), names) == identity
    assert listings.fingerprint(listing(rows[::-1]), tmp_path / "one", names) != identity
    assert listings.fingerprint(listing(rows), tmp_path / "one", ["a", "c"]) != identity
    assert listings.fingerprint(hold_out(listing(rows), 0.5), tmp_path / "one", names) != identity
    (tmp_path / "one" / rows[0].path).write_bytes(b"xx")
    changed = listings.fingerprint(listing(rows), tmp_path / "one", names)
    assert changed != identity
    (tmp_path / "two" / rows[0].path).unlink()
    without = listings.fingerprint(listing(rows), tmp_path / "two", names)
    assert without == listings.fingerprint(listing(rows[1:]), tmp_path / "two", names)
