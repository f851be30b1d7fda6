"""What each of several jobs is given of the machine."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from kinoscope.errors import Refusal
from kinoscope.launch import places as module
from kinoscope.launch.places import cuda_devices, places, require_devices

GPU = {"accelerator": "gpu", "devices": 1}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs and eight cores."""
    monkeypatch.setattr(module, "cuda_devices", lambda: ["0", "1", "2", "5"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def visible(found: list[dict[str, str]]) -> list[str | None]:
    return [place.get("CUDA_VISIBLE_DEVICES") for place in found]


def test_one_job_has_it_all() -> None:
    assert places(1, None, GPU, workers=2) == [{}]
    assert places(1, None, {"accelerator": "gpu", "devices": [3]}, workers=2) == [{}]


def test_each_job_has_its_own_devices() -> None:
    assert visible(places(4, None, GPU, 0)) == ["0", "1", "2", "5"]
    assert visible(places(2, None, {"accelerator": "auto", "devices": 2}, 0)) == ["0,1", "2,5"]
    assert visible(places(2, 2, {"accelerator": "gpu", "devices": "auto"}, 0)) == ["0,1", "2,5"]
    assert visible(places(9, 0, GPU, 0)) == [None] * 9


def test_each_job_has_its_share_of_the_cores() -> None:
    cpu = {"accelerator": "cpu", "devices": 1}
    assert places(2, None, cpu, workers=0) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert places(2, None, cpu, workers=1) == [{"OMP_NUM_THREADS": "3"}] * 2
    assert places(20, None, cpu, workers=1) == [{"OMP_NUM_THREADS": "1"}] * 20
    assert places(2, None, {"accelerator": "cpu", "devices": 2}, workers=1) == [{"OMP_NUM_THREADS": "1"}] * 2


def test_a_thread_count_of_the_users_own_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert places(2, None, {"accelerator": "cpu"}, workers=0) == [{}, {}]


@pytest.mark.parametrize(
    ("n_jobs", "devices", "trainer", "sentence"),
    [
        (5, None, GPU, "5 jobs at a time with 1 devices each need 5, and there are 4"),
        (3, 2, GPU, "need 6, and there are 4; lower sweep.n_jobs"),
        (
            2,
            1,
            {"accelerator": "gpu", "devices": 2},
            "asks for trainer.devices=2, but is given sweep.devices_per_job=1",
        ),
        (2, None, {"accelerator": "gpu", "devices": [0, 1]}, r"trainer.devices=\[0, 1\] names devices"),
        (0, None, GPU, "sweep.n_jobs must be at least 1"),
        (1, -1, GPU, "sweep.devices_per_job must be at least 0"),
    ],
)
def test_more_than_there_is(n_jobs: int, devices: int | None, trainer: dict[str, object], sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        places(n_jobs, devices, trainer, 0)


def test_no_gpu_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cuda_devices", list)
    with pytest.raises(Refusal, match="need 2, and there are 0"):
        places(2, None, GPU, 0)
    assert visible(places(2, None, {"accelerator": "auto"}, 0)) == [None, None]


@pytest.mark.parametrize(
    ("devices", "enough"), [(1, True), (4, True), (5, False), ([3], True), ([0, 4], False), (-1, True)]
)
def test_what_one_job_asks_for(devices: object, enough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 4))  # asked where the driver knows of too few
    monkeypatch.setitem(sys.modules, "torch", torch)
    require_devices({"accelerator": "auto", "devices": devices})
    with nullcontext() if enough else pytest.raises(Refusal, match="there are 4 GPUs here"):
        require_devices({"accelerator": "gpu", "devices": devices})


class Driver:
    """CUDA's driver with two devices."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: object) -> int:
        count._obj.value = 2  # type: ignore[attr-defined]
        return 0


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert cuda_devices() == ["3", "5"]
    monkeypatch.setattr("ctypes.CDLL", lambda name: (_ for _ in ()).throw(OSError()))
    assert cuda_devices() == []
