"""Keyed draws: uniform, independent of each other, and the same wherever and in whatever order they are computed."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kinoscope.data import draws

N = 100_000


def test_uniform_fills_the_unit_interval_evenly() -> None:
    u = draws.uniform(0, 3, np.arange(N), "crop_row")
    assert u.dtype == np.float64
    assert u.min() >= 0.0
    assert u.max() < 1.0
    # Kolmogorov–Smirnov distance of N = 100,000 draws: above 2.0/√N with probability 2·exp(−8) ≈ 7e-4.
    distance = np.abs(np.sort(u) - (np.arange(N) + 0.5) / N).max()
    assert distance < 2.0 / np.sqrt(N)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ((0, 1, "crop_row", 0), "epoch"),
        ((0, 0, "crop_row", 1), "index"),
        ((1, 0, "crop_row", 0), "seed"),
        ((0, 0, "crop_col", 0), "stream"),
    ],
)
def test_neighbouring_keys_are_uncorrelated(other: tuple[int, int, str, int], what: str) -> None:
    first = draws.uniform(0, 0, np.arange(N), "crop_row")
    seed, epoch, stream, shift = other
    second = draws.uniform(seed, epoch, np.arange(N) + shift, stream)
    # The correlation of N = 100,000 independent pairs has standard error 1/√N; four of them.
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(N), what
    # Joint 8 × 8 table: χ² with 63 degrees of freedom, mean 63, sd √126 = 11.2; five sd.
    table = np.histogram2d(first, second, bins=8, range=((0, 1), (0, 1)))[0]
    assert ((table - N / 64) ** 2 / (N / 64)).sum() < 63 + 5 * np.sqrt(126), what


def test_vectorised_equals_scalar_and_any_order() -> None:
    epochs, indices = np.array([[0], [7]]), np.array([5, 0, 123_456_789_012])
    grid = draws.uniform(42, epochs, indices, "flip")
    assert grid.shape == (2, 3)
    one_by_one = [[float(draws.uniform(42, int(e), int(i), "flip")) for i in indices] for e in epochs[:, 0]]
    np.testing.assert_array_equal(grid, one_by_one)
    np.testing.assert_array_equal(draws.uniform(42, epochs, indices[::-1], "flip"), grid[:, ::-1])


def test_epoch_and_index_do_not_commute() -> None:
    a = draws.uniform(0, np.arange(1000), np.arange(1000) + 1, "x")
    b = draws.uniform(0, np.arange(1000) + 1, np.arange(1000), "x")
    assert not (a == b).any()


def test_permutation_is_one_and_differs_by_epoch() -> None:
    orders = [draws.permutation(0, epoch, 1000) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    # Two random orders agree in Poisson(1) places: 9 or more has probability 1e-6.
    assert (orders[0] == orders[1]).sum() < 9
    assert (orders[1] == orders[2]).sum() < 9
    assert len(draws.permutation(0, 0, 0)) == 0


def test_permutation_places_each_item_evenly() -> None:
    firsts = np.bincount([draws.permutation(0, epoch, 10)[0] for epoch in range(5000)], minlength=10)
    # 5,000 epochs: χ² with 9 degrees of freedom, 33.7 has probability 1e-4.
    assert ((firsts - 500) ** 2 / 500).sum() < 33.7


@pytest.mark.parametrize(("prior", "variance", "fourth"), [("uniform", 1 / 3, 1 / 5), ("normal", 1.0, 3.0)])
def test_latent_has_the_prior_s_moments(prior: draws.Prior, variance: float, fourth: float) -> None:
    z = draws.latent(0, 0, np.arange(1000), (100,), prior)
    assert z.dtype == np.float32
    assert z.shape == (1000, 100)
    # n = 100,000: standard errors √(var/n), √((m4−var²)/n), and for m4 √((m8−m4²)/n) with m8 = 1/9 and 105.
    n, eighth = z.size, {"uniform": 1 / 9, "normal": 105.0}[prior]
    assert abs(z.mean(dtype=float)) < 4 * np.sqrt(variance / n)
    assert abs((z.astype(float) ** 2).mean() - variance) < 4 * np.sqrt((fourth - variance**2) / n)
    assert abs((z.astype(float) ** 4).mean() - fourth) < 4 * np.sqrt((eighth - fourth**2) / n)
    if prior == "uniform":
        assert np.abs(z).max() <= 1.0


def test_latent_depends_on_the_global_position_only() -> None:
    whole = draws.latent(3, 17, np.arange(8), (4, 2))
    np.testing.assert_array_equal(draws.latent(3, 17, np.arange(1, 8, 2), (4, 2)), whole[1::2])
    assert (draws.latent(3, 18, np.arange(8), (4, 2)) != whole).all()


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_latents_of_several_steps_are_those_of_each(prior: draws.Prior) -> None:
    block = draws.latent(3, np.arange(2**40, 2**40 + 3), np.arange(5), (4, 2), prior)
    for step in range(3):
        np.testing.assert_array_equal(block[step], draws.latent(3, 2**40 + step, np.arange(5), (4, 2), prior))


def test_the_same_in_another_process_whatever_its_hash_seed() -> None:
    code = (
        "from kinoscope.data import draws\n"
        "print(draws.uniform(1, 2, 3, 'start').item().hex(), draws.permutation(1, 2, 9))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = f"{float(draws.uniform(1, 2, 3, 'start')).hex()} {draws.permutation(1, 2, 9)}\n"
    assert runs == {here}


def test_known_values_of_splitmix64() -> None:
    # The first outputs of SplitMix64 started at 0, as printed in its reference implementation's test vectors.
    state = (np.arange(1, 4).astype(np.uint64)) * draws._GAMMA
    assert [hex(v) for v in draws._mix(state)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_module_is_free_of_torch() -> None:
    code = "import kinoscope.data.draws, kinoscope.data.image_files, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
