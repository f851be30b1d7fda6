"""What each of several jobs on this machine is given: devices of its own, and its share of the cores."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kinoscope.errors import Refusal
from kinoscope.launch.processes import cores


def places(n_jobs: int, devices_per_job: int | None, trainer: Mapping[str, Any], workers: int) -> list[dict[str, str]]:
    """The environment of each place in which a job can run.

    Args:
        n_jobs: how many jobs run at a time.
        devices_per_job: CUDA devices of each; None takes ``trainer.devices``, 0 lets the jobs share all there are.
        trainer: the trainer's arguments, of which accelerator and devices count here.
        workers: processes of each job that read data, and want a core each.

    Raises:
        Refusal: there are fewer devices than the jobs need.
    """
    if n_jobs < 1:
        raise Refusal(f"sweep.n_jobs must be at least 1, got {n_jobs}")
    if devices_per_job is not None and devices_per_job < 0:
        raise Refusal(f"sweep.devices_per_job must be at least 0, got {devices_per_job}")
    if n_jobs == 1 and devices_per_job is None:
        return [{}]
    asked = trainer.get("devices", 1)
    each = devices_per_job if devices_per_job is not None else asked if isinstance(asked, int) and asked > 0 else 1
    visible = _visible(n_jobs, each, asked, str(trainer.get("accelerator", "auto")))
    shared = {} if n_jobs == 1 else _threads(n_jobs * max(1, asked if isinstance(asked, int) else each), workers)
    return [
        {**shared, **({"CUDA_VISIBLE_DEVICES": ",".join(visible[i * each : (i + 1) * each])} if visible else {})}
        for i in range(n_jobs)
    ]


def require_devices(trainer: Mapping[str, Any]) -> None:
    """Raises `Refusal` if one job asks for more GPUs than there are, before each of many finds out by itself."""
    accelerator, asked = trainer.get("accelerator"), trainer.get("devices", 1)
    if accelerator not in ("gpu", "cuda"):
        return
    if isinstance(asked, int | str):
        needed = max(1, asked) if isinstance(asked, int) else 1
    else:
        needed = max(asked, default=0) + 1
    there = len(cuda_devices())
    if needed > there:
        import torch  # it knows GPUs of other makers, too

        there = torch.cuda.device_count() or int(accelerator == "gpu" and torch.backends.mps.is_available())
    if needed > there:
        raise Refusal(f"trainer.devices={asked} on trainer.accelerator={accelerator}: there are {there} GPUs here")


def _visible(n_jobs: int, each: int, asked: Any, accelerator: str) -> Sequence[str]:
    """The CUDA devices that are shared out; none where the jobs need none or share them."""
    if each == 0 or accelerator not in ("auto", "gpu", "cuda"):
        return ()
    there = cuda_devices()
    if not there and accelerator == "auto":
        return ()
    if not isinstance(asked, int | str):
        raise Refusal(f"trainer.devices={list(asked)} names devices, which a parallel sweep shares out: give a number")
    if isinstance(asked, int) and asked > each:
        raise Refusal(f"each job asks for trainer.devices={asked}, but is given sweep.devices_per_job={each}")
    if n_jobs * each > len(there):
        raise Refusal(
            f"sweep: {n_jobs} jobs at a time with {each} devices each need {n_jobs * each}, and there are "
            f"{len(there)}; lower sweep.n_jobs, or share them with sweep.devices_per_job=0"
        )
    return there


def _threads(processes: int, workers: int) -> dict[str, str]:
    """Without it every job would take all cores, and they would wait for each other."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return {}  # the user's own choice
    return {"OMP_NUM_THREADS": str(max(1, cores() // processes - workers))}


def cuda_devices() -> list[str]:
    """The names of the CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` wants them.

    The driver is asked, since importing torch takes longer than all else that a sweep's own process does.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count.value)] if named is None else named.split(",")
    return [name.strip() for name in names][: count.value]
