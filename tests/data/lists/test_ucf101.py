"""UCF101's folders and lists, on small copies of their layout and on the real one."""

import logging
from pathlib import Path

import pytest

from kinoscope.data.lists import ucf101
from kinoscope.data.lists.listing import counts, listing
from kinoscope.errors import Refusal

CLASSES = ("ApplyLipstick", "Archery", "HandstandPushups")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """3 classes × 10 groups × 2 clips, empty files; split 1 tests groups 1–3. All quirks of the real lists."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"".join(b"%d %s\r\n" % (k, c.encode()) for k, c in enumerate(CLASSES, 1)))
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number, name in enumerate(CLASSES, 1):
        folder = tmp_path / "UCF-101" / name
        folder.mkdir(parents=True)
        written = name.replace("stand", "Stand")  # HandStandPushups in the lists
        for group in range(1, 11):
            for clip in (1, 2):
                (folder / f"v_{name}_g{group:02d}_c{clip:02d}.avi").write_bytes(b"x" * group)
                listed = f"{name}/v_{written}_g{group:02d}_c{clip:02d}.avi"
                lines["test" if group <= 3 else "train"].append(listed if group <= 3 else f"{listed} {number}")
    for subset, content in lines.items():
        (lists / f"{subset}list01.txt").write_bytes("".join(f"{line}\r\n" for line in content).encode())
    return tmp_path


def test_classes_are_those_on_disk_in_listed_order(root: Path) -> None:
    assert ucf101.class_names(root) == list(CLASSES)
    assert ucf101.class_names(root, ["archery", "ApplyLipstick"]) == ["ApplyLipstick", "Archery"]
    (root / "UCF-101" / "Archery").rename(root / "Archery")
    assert ucf101.class_names(root) == ["ApplyLipstick", "HandstandPushups"]


def test_a_split_holds_every_listed_video_once(root: Path) -> None:
    entries = ucf101.read_split(root, 1, validation=0)
    assert counts(listing(entries)) == {"train": 42, "test": 18}
    assert len({entry.path for entry in entries}) == 60
    for entry in entries:
        assert (root / entry.path).is_file()
        name = CLASSES[entry.label]
        assert Path(entry.path).parent.name == name
        number = int(entry.path[-10:-8])
        assert entry.group == f"{name}_g{number:02d}"
        assert (entry.subset == "test") == (number <= 3)


@pytest.mark.parametrize("layout", ["flat", "mp4"])
def test_other_layouts_give_the_same_split(root: Path, layout: str) -> None:
    before = ucf101.read_split(root, 1)
    if layout == "flat":
        for name in CLASSES:
            (root / "UCF-101" / name).rename(root / name)
        (root / "UCF-101").rmdir()
        expected = [entry.path.removeprefix("UCF-101/") for entry in before]
    else:
        for file in (root / "UCF-101").glob("*/*.avi"):
            file.rename(file.with_suffix(".MP4"))
        expected = [entry.path.replace(".avi", ".MP4") for entry in before]
    after = ucf101.read_split(root, 1)
    assert [entry.path for entry in after] == expected
    assert [(e.label, e.group, e.subset) for e in after] == [(e.label, e.group, e.subset) for e in before]


@pytest.mark.parametrize(("share", "held"), [(0, 0), (0.01, 1), (0.1, 1), (0.3, 2), (0.5, 4), (0.99, 6)])
def test_validation_takes_whole_groups_of_every_class(root: Path, share: float, held: int) -> None:
    entries = ucf101.read_split(root, 1, validation=share)
    groups: dict[str, set[str]] = {}
    for entry in entries:
        groups.setdefault(entry.group, set()).add(entry.subset)
    assert all(len(subsets) == 1 for subsets in groups.values())
    for name in CLASSES:
        assert sum(subsets == {"validation"} for group, subsets in groups.items() if group.startswith(name)) == held
    assert counts(listing(entries))["test"] == 18
    assert entries == ucf101.read_split(root, 1, validation=share)


def test_absent_videos_are_counted_once_or_an_error(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for clip in (1, 2):
        (root / f"UCF-101/Archery/v_Archery_g05_c0{clip}.avi").unlink()
    with caplog.at_level(logging.INFO, "kinoscope"):
        entries = ucf101.read_split(root, 1, validation=0)
        ucf101.fingerprint(root, 1)
    assert len(entries) == 58
    assert [record.message for record in caplog.records] == ["split 1 names 60 videos of these classes, 58 are here."]
    with pytest.raises(Refusal, match=r"lists Archery/v_Archery_g05_c01\.avi, which is not there, nor are 1 more"):
        ucf101.read_split(root, 1, missing="error")


def test_the_fingerprint_follows_the_data_and_nothing_else(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = ucf101.fingerprint(root, 1)
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    root.rename(moved)
    for file in (moved / "ucfTrainTestlist").iterdir():
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    (moved / "UCF-101/Archery/notes.txt").write_text("not a video")
    assert ucf101.fingerprint(moved, 1) == before
    assert ucf101.fingerprint(moved, 1, ["Archery"]) != before
    (moved / "UCF-101/Archery/v_Archery_g05_c01.avi").write_bytes(b"re-encoded")
    assert ucf101.fingerprint(moved, 1) != before


def test_every_fault_is_one_sentence(root: Path) -> None:
    def refused(match: str, split: int = 1, at: Path = root, classes: list[str] | None = None) -> None:
        with pytest.raises(Refusal, match=match) as caught:
            ucf101.read_split(at, split, classes)
        assert "\n" not in str(caught.value)

    refused("there is no folder", at=root / "nowhere")
    refused("'Archry' is not in .*did you mean 'Archery'", classes=["Archry"])
    refused("data.split is 1, 2 or 3, got 7", split=7)
    refused("trainlist02.txt is missing", split=2)
    (root / "UCF-101" / "Archery").rename(root / "Archery")
    refused("'Archery' has no folder of videos", classes=["Archery"])
    (root / "UCF-101" / "Archary").mkdir()
    refused("the class folder 'Archary' is not in .*did you mean 'Archery'")
    assert ucf101.class_names(root, ["HandstandPushups"]) == ["HandstandPushups"]
    (root / "UCF-101" / "Archary").rmdir()
    for file in (root / "UCF-101" / "ApplyLipstick").glob("*_g0[4-9]_*"):
        file.unlink()
    for file in (root / "UCF-101" / "ApplyLipstick").glob("*_g10_*"):
        file.unlink()
    refused("class 'ApplyLipstick' has no training video of split 1")
    (root / "ucfTrainTestlist/classInd.txt").write_text("ApplyLipstick\n")
    refused("classInd.txt, line 1: expected '1 ApplyEyeMakeup', found 'ApplyLipstick'")
    (root / "ucfTrainTestlist/classInd.txt").unlink()
    refused("classInd.txt is missing")


def test_a_folder_without_classes_is_refused(root: Path) -> None:
    (root / "UCF-101").rename(root / ".hidden")
    with pytest.raises(Refusal, match=r"not one class folder"):
        ucf101.class_names(root)


@pytest.mark.parametrize(("folder", "names", "train", "test"), [("ucf101", 3, 65, 35), ("ucf101-mp4", 10, 73, 24)])
def test_the_real_lists(datasets: Path, folder: str, names: int, train: int, test: int) -> None:
    root = datasets / folder
    entries = ucf101.read_split(root, 1, validation=0)
    assert len(ucf101.class_names(root)) == names
    assert counts(listing(entries)) == {"train": train, "test": test}
    held = ucf101.read_split(root, 1, validation=0.2)
    assert {e.path for e in held} == {e.path for e in entries}
    trained = {e.group for e in held if e.subset == "train"}
    assert not trained & {e.group for e in held if e.subset != "train"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("../../etc/passwd.avi 1", r"expected '<Class>/<file>', found '\.\./\.\./etc/passwd.avi 1'"),
        ("/etc/passwd.avi 1", "expected '<Class>/<file>'"),
        ("Archery\\..\\x.avi 1", "expected '<Class>/<file>'"),
        ("../passwd.avi 1", r"'\.\.' is not a class of classInd.txt"),
        ("Archary/v_Archary_g01_c01.avi 2", r"'Archary' is not a class of classInd.txt \(did you mean 'Archery'"),
        ("Archery/v_Archery_g04_c01.avi 2", "Archery/v_Archery_g04_c01.avi has been listed before, in line 15"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(root: Path, line: str, fault: str) -> None:
    with (root / "ucfTrainTestlist/trainlist01.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(Refusal, match=rf"trainlist01.txt, line 44: {fault}"):
        ucf101.read_split(root, 1)


def test_links_that_lead_out_are_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.avi").touch()
    path = root / "UCF-101/ApplyLipstick/v_ApplyLipstick_g04_c02.avi"
    path.unlink()
    path.symlink_to(outside / "secret.avi")
    with pytest.raises(Refusal, match=r"trainlist01.txt, line 2: UCF-101/ApplyLipstick/.* leads out of .*secret\.avi"):
        ucf101.read_split(root, 1)
    path.unlink()
    (root / "UCF-101/Archery").rename(outside / "Archery")
    (root / "UCF-101/Archery").symlink_to(outside / "Archery")
    with pytest.raises(Refusal, match=r"UCF-101/Archery is a link that leads out of .*; everything a data set has"):
        ucf101.class_names(root)
