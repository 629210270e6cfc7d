"""Normalisation against simulated crystals whose scale, B, anisotropy and outliers are known."""

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source

SOURCE = Source("none", "MTZ", ("I", "SIGI"), "intensity")
ZERO = np.zeros(6)


def full(tensor):
    """(3, 3) of B11 B22 B33 B12 B13 B23."""
    return np.array(tensor)[[0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(3, 3)


def wilson_intensities(name, cell, d_min, b=8.0, aniso=ZERO, scale=1.0, seed=0, atoms=None):
    """Intensities drawn from Wilson's distribution for carbon atoms, and their true expectation.

    Independent of the code under test: s = h.(reciprocal vectors) and epsilon by counting operators.
    """
    sg, cell = gemmi.SpaceGroup(name), gemmi.UnitCell(*cell)
    hkl = np.asarray(gemmi.make_miller_array(cell, sg, d_min), dtype=np.int32)
    reciprocal = np.linalg.inv(np.array(cell.orth.mat))
    s = hkl @ reciprocal
    s2 = (s**2).sum(axis=1)
    operators = list(sg.operations().sym_ops)
    turned = np.array([hkl @ (np.array(op.rot) // op.DEN) for op in operators])
    epsilon = (turned == hkl).all(axis=2).sum(axis=0)
    centric = (turned == -hkl).all(axis=2).any(axis=0)
    carbon = np.array([gemmi.Element("C").it92.calculate_sf(x / 4) for x in s2])
    atoms = atoms or cell.volume / 18
    mean = scale * epsilon * atoms * carbon**2 * np.exp(-0.5 * (b * s2 + np.einsum("ni,ij,nj->n", s, full(aniso), s)))
    rng = np.random.default_rng(seed)
    e2 = np.where(centric, rng.normal(size=len(hkl)) ** 2, rng.exponential(size=len(hkl)))
    for members in np.array_split(np.argsort(s2), max(1, len(hkl) // 500)):
        e2[members] /= e2[members].mean()  # less luck in the draw
    return sg, cell, hkl, mean, e2


def from_intensity(sg, cell, hkl, intensity, sigma):
    f = np.sqrt(np.maximum(intensity, 0))
    return Amplitudes(hkl, f, np.zeros_like(f), cell, sg, SOURCE, intensity=intensity, sigma_i=sigma)


def from_amplitude(sg, cell, hkl, intensity):
    f = np.sqrt(intensity)
    return Amplitudes(hkl, f, 0.02 * f, cell, sg, Source("none", "MTZ", ("F",), "amplitude"))


@pytest.mark.parametrize(
    ("name", "cell", "tensor"),
    [
        ("P 1", (18, 21, 25, 80, 95, 105), (4, -1, -3, 2, -3, 1.5)),
        ("P 1 21 1", (18, 21, 25, 90, 105, 90), (4, -1, -3, 0, -3, 0)),
        ("P 21 21 21", (21, 25, 30, 90, 90, 90), (-6, 2, 4, 0, 0, 0)),
        ("P 43 21 2", (32, 32, 45, 90, 90, 90), (3, 3, -6, 0, 0, 0)),
        ("P 31 2 1", (34, 34, 41, 90, 90, 120), (-3, -3, 6, 0, 0, 0)),
        ("C 1 2 1", (38, 21, 25, 90, 115, 90), (4, -1, -3, 0, -3, 0)),
        ("R 3 2:H", (45, 45, 41, 90, 90, 120), (3, 3, -6, 0, 0, 0)),
    ],
)
def test_known_anisotropy_is_recovered(name, cell, tensor):
    sg, cell, hkl, mean, e2 = wilson_intensities(name, cell, 1.3, aniso=tensor)
    result = normalise(from_amplitude(sg, cell, hkl, mean * e2))
    np.testing.assert_allclose(result.aniso_b, tensor, atol=0.6)
    assert abs(result.aniso_b[:3].sum()) < 1e-9
    # the true E^2 come back, up to a few percent of noise in the expectation
    assert np.corrcoef(result.e, np.sqrt(e2))[0, 1] > 0.995
    np.testing.assert_allclose(np.median(result.expected / mean), 1, atol=0.05)


def test_tensor_obeys_the_group_along_any_axes():
    """In the rhombohedral setting the threefold runs along the body diagonal."""
    sg, cell, hkl, mean, e2 = wilson_intensities("R 3:R", (25, 25, 25, 75, 75, 75), 1.3)
    axis = np.array(cell.orth.mat) @ [1, 1, 1]
    axis /= np.linalg.norm(axis)
    s = hkl @ np.array(cell.frac.mat)
    tensor = 6 * (np.outer(axis, axis) - np.eye(3) / 3)
    strength = np.exp(-0.5 * np.einsum("ni,ij,nj->n", s, tensor, s))
    result = normalise(from_amplitude(sg, cell, hkl, mean * e2 * strength))
    np.testing.assert_allclose(full(result.aniso_b), tensor, atol=0.7)
    np.testing.assert_allclose(full(result.aniso_b) @ axis, axis * (axis @ full(result.aniso_b) @ axis), atol=1e-9)


def test_cubic_and_isotropic_data_get_no_anisotropy():
    for name, cell in [("F 2 3", (52, 52, 52, 90, 90, 90)), ("P 21 21 21", (21, 25, 30, 90, 90, 90))]:
        sg, cell, hkl, mean, e2 = wilson_intensities(name, cell, 1.4)
        assert not normalise(from_amplitude(sg, cell, hkl, mean * e2)).aniso_b.any()


@pytest.mark.parametrize("d_min", [0.8, 1.2, 2.0])
@pytest.mark.parametrize("lattice", ["P", "C"])
def test_wilson_scale_and_b_of_random_protein_atoms(d_min, lattice):
    """Atoms at random, in the numbers and kinds of an organic crystal, on an arbitrary scale."""
    from ml_phaser.crystal.normalise import _CONTENT, _HEAVY

    cell = gemmi.UnitCell(19, 21, 24, 90, 100, 90)
    sg = gemmi.SpaceGroup(f"{lattice} 1 2 1")
    hkl = np.asarray(gemmi.make_miller_array(cell, sg, d_min), dtype=np.int32)
    rng = np.random.default_rng(5)
    n_heavy = cell.volume / 18 / len(sg.operations())
    f = np.zeros(len(hkl), dtype=complex)
    stol2 = cell.calculate_1_d2_array(hkl) / 4
    for element, number in _CONTENT.items():
        sites = rng.random((round(number * n_heavy / _HEAVY), 3))
        every = np.array([op.apply_to_xyz(list(x)) for x in sites for op in sg.operations()]).reshape(-1, 3)
        form = np.array([gemmi.Element(element).it92.calculate_sf(x) for x in stol2])
        f += form * np.exp(2j * np.pi * (hkl @ every.T)).sum(axis=1)
    f = np.abs(f) * np.exp(-12.0 * stol2) * 7.5
    data = Amplitudes(hkl, f, f * 0.01, cell, sg, Source("none", "MTZ", ("F",), "amplitude"))
    result = normalise(data)
    assert result.wilson_scale * 7.5 == pytest.approx(1, abs=0.15 if d_min < 1.5 else 0.25)
    assert result.wilson_b == pytest.approx(12, abs=0.5 if d_min < 1.5 else 2.5)
    for shell in result.shells:
        assert shell.mean_e2 == pytest.approx(1, abs=3.5 / np.sqrt(shell.n))


def test_scale_changes_nothing_but_the_scale():
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (18, 21, 25, 90, 90, 90), 1.2)
    one, other = (normalise(from_amplitude(sg, cell, hkl, mean * e2 * k)) for k in (1.0, 1e-6))
    np.testing.assert_allclose(other.e, one.e, rtol=1e-6)
    assert other.wilson_scale == pytest.approx(one.wilson_scale * 1e3, rel=1e-6)
    assert other.wilson_b == pytest.approx(one.wilson_b, rel=1e-6)


def test_mean_e2_is_one_in_every_shell_of_structured_data():
    """Rings of extra scattering, as solvent and protein give, are followed."""
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (42, 47, 53, 90, 90, 90), 1.8)
    d = cell.calculate_d_array(hkl)
    bump = 1 + 1.5 * np.exp(-(((d - 4.5) / 0.8) ** 2)) - 0.6 * np.exp(-(((d - 6.5) / 1.0) ** 2))
    result = normalise(from_amplitude(sg, cell, hkl, mean * e2 * bump))
    for shell in result.shells:
        assert shell.mean_e2 == pytest.approx(1, abs=3.5 / np.sqrt(shell.n))
        assert shell.completeness == pytest.approx(1, abs=0.01)
    assert sum(shell.n for shell in result.shells) == len(hkl)
    # against fixed shells of our own making
    order = np.argsort(d)
    for members in np.array_split(order, 12):
        assert result.e2[members].mean() == pytest.approx(1, abs=3.5 / np.sqrt(len(members)))
        np.testing.assert_allclose(np.mean(result.expected[members] / (mean * bump)[members]), 1, atol=0.12)


def test_special_reflections_are_divided_by_epsilon():
    """Axes and mirrors of 4/mmm: expectations up to eight times a general reflection's, in F and in I."""
    sg, cell, hkl, mean, e2 = wilson_intensities("P 4/m m m", (42, 42, 53, 90, 90, 90), 1.6)
    ops = [np.array(op.rot) // op.DEN for op in sg.operations().sym_ops]
    special = sum((hkl @ rot == hkl).all(axis=1) for rot in ops) > 1
    assert special.sum() > 300
    result = normalise(from_amplitude(sg, cell, hkl, mean * e2))
    np.testing.assert_allclose(result.expected[special] / mean[special], 1, atol=0.45)
    intensity, sigma = noisy(e2, mean, 0.05)
    result = normalise(from_intensity(sg, cell, hkl, intensity, sigma))
    assert any("French-Wilson" in note for note in result.notes)
    np.testing.assert_allclose(result.expected[special] / mean[special], 1, atol=0.45)
    certain = special & (intensity > 8 * sigma) & (intensity < 20 * sigma)
    assert certain.sum() > 20
    np.testing.assert_allclose(result.f[certain], np.sqrt(intensity[certain]), rtol=0.02)


def noisy(e2, mean, level, seed=1):
    sigma = np.full(len(mean), level * mean.mean()) * np.random.default_rng(seed).uniform(0.7, 1.3, len(mean))
    return mean * e2 + np.random.default_rng(seed + 1).normal(size=len(mean)) * sigma, sigma


def test_weak_intensities_stay_negative_in_e2_and_amplitudes_are_positive():
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (25, 31, 36, 90, 90, 90), 1.7, b=20)
    intensity, sigma = noisy(e2, mean, 0.3)
    result = normalise(from_intensity(sg, cell, hkl, intensity, sigma))
    assert (intensity < 0).mean() > 0.05
    np.testing.assert_array_equal(np.sign(result.e2), np.sign(intensity))
    np.testing.assert_allclose(result.e2, intensity / result.expected)
    assert (result.f > 0).all() and (result.sigf > 0).all() and np.isfinite(result.sigf).all()
    assert any("French-Wilson" in note for note in result.notes)
    for members in np.array_split(np.argsort(mean), 10):
        error = np.sqrt(np.mean(1 + (sigma / mean)[members] ** 2) / len(members))
        assert result.e2[members].mean() == pytest.approx(1, abs=3.5 * error)
    np.testing.assert_allclose(result.e, result.f / np.sqrt(result.expected))
    np.testing.assert_allclose(result.sig_e, result.sigf / np.sqrt(result.expected))
    # nearer to the truth than the root of what is positive, and honest about how near
    true = np.sqrt(mean * e2)
    weak = intensity < 3 * sigma
    simple = np.sqrt(np.maximum(intensity, 0))
    assert np.mean((result.f - true)[weak] ** 2) < 0.8 * np.mean((simple - true)[weak] ** 2)
    pull = (result.f - true) / result.sigf
    assert 0.85 < pull.std() < 1.15
    assert abs(np.mean((result.f - true)[weak])) < 0.05 * true[weak].mean()


def test_strong_intensities_give_their_square_roots():
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (12, 14, 17, 90, 90, 90), 1.0)
    intensity = mean * (e2 + 0.05)
    sigma = intensity / 50
    result = normalise(from_intensity(sg, cell, hkl, intensity, sigma))
    np.testing.assert_allclose(result.f, np.sqrt(intensity))
    np.testing.assert_allclose(result.sigf, sigma / (2 * np.sqrt(intensity)))
    assert all(shell.i_over_sigma == pytest.approx(50) for shell in result.shells)


def test_noise_beyond_the_diffraction_limit_is_survived():
    """Half of the shells hold nothing but noise, whose mean is as often negative as not."""
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (25, 31, 36, 90, 90, 90), 1.4, b=60)
    intensity, sigma = noisy(e2, mean, 0.2)
    dead = cell.calculate_d_array(hkl) < 1.8
    intensity[dead] = np.random.default_rng(4).normal(-0.05, 1, dead.sum()) * sigma[dead]
    result = normalise(from_intensity(sg, cell, hkl, intensity, sigma))
    for value in (result.e, result.e2, result.sig_e, result.f, result.sigf, result.expected):
        assert np.isfinite(value).all()
    assert result.expected.min() > 0
    assert result.outlier.mean() < 0.01
    assert np.abs(np.mean(result.e2[~dead])) == pytest.approx(1, abs=0.15)
    assert np.abs(result.e2[dead]).max() < 200


def test_outliers_are_found_and_do_not_disturb_the_rest():
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (25, 31, 36, 90, 90, 90), 1.6)
    clean = normalise(from_intensity(sg, cell, hkl, mean * e2, 0.03 * mean))
    assert not clean.outlier.any()
    bad = np.array([17, 500, 2000])
    spoilt, sigma = mean * e2, 0.03 * mean
    spoilt[bad] = mean[bad] * [40, 400, 4000]
    spoilt[900] = -52 * sigma[900]
    result = normalise(from_intensity(sg, cell, hkl, spoilt, sigma))
    assert set(np.flatnonzero(result.outlier)) == {*bad, 900}
    rest = ~result.outlier
    np.testing.assert_allclose(result.e2[rest], clean.e2[rest], rtol=0.1, atol=0.02)


def test_a_large_error_excuses_a_large_value():
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (25, 31, 36, 90, 90, 90), 1.6)
    spoilt, sigma = mean * e2, 0.03 * mean
    spoilt[500], sigma[500] = 40 * mean[500], 15 * mean[500]
    assert not normalise(from_intensity(sg, cell, hkl, spoilt, sigma)).outlier.any()


def test_the_true_strong_reflections_of_a_layered_crystal_are_kept():
    """Pseudo-translation: every fifth layer seven times as strong as the rest."""
    sg, cell, hkl, mean, e2 = wilson_intensities("P 1 21 1", (18, 21, 25, 90, 105, 90), 1.1)
    strong = np.where(hkl[:, 2] % 5 == 0, 7.0, 1.0)
    result = normalise(from_amplitude(sg, cell, hkl, mean * e2 * strong))
    assert (result.e2 > 13.8).any()
    assert not result.outlier.any()


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 150),
    name=st.sampled_from(["P 1", "P -1", "P 21 21 21", "P 4/m", "P m -3 m", "P 63/m"]),
    d_min=st.sampled_from([0.36, 0.9, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_handful_of_reflections_in_a_tiny_cell(seed, n, name, d_min):
    """No assumption fails, whatever the size: finite, positive, about 1 on average."""
    edge = {"P m -3 m": (9.9, 9.9, 9.9), "P 4/m": (6, 6, 9), "P 63/m": (6, 6, 9)}.get(name, (5, 6, 7))
    angles = (90, 90, 120) if name == "P 63/m" else (90, 90, 90)
    sg, cell, hkl, mean, e2 = wilson_intensities(
        name, (*(length * d_min / 0.9 for length in edge), *angles), d_min, b=1.0, seed=seed
    )
    keep = np.random.default_rng(seed).permutation(len(hkl))[:n]
    sigma = 0.1 * mean[keep]
    intensity = mean[keep] * e2[keep] + sigma * np.random.default_rng(seed).normal(size=len(keep))
    result = normalise(from_intensity(sg, cell, hkl[keep], intensity, sigma))
    for value in (result.e, result.e2, result.sig_e, result.f, result.sigf, result.expected, result.aniso_b):
        assert np.isfinite(value).all()
    assert (result.expected > 0).all() and (result.e >= 0).all()
    assert np.isfinite(result.wilson_b) and result.wilson_scale > 0
    used = ~result.outlier
    if n >= 20:
        assert result.e2[used].mean() == pytest.approx(1, abs=0.35)
    assert sum(shell.n for shell in result.shells) == len(intensity)


def test_unknown_uncertainties():
    sg, cell, hkl, mean, e2 = wilson_intensities("P 21 21 21", (12, 14, 17, 90, 90, 90), 1.0)
    data = from_intensity(sg, cell, hkl, mean * e2, None)
    result = normalise(data)
    np.testing.assert_allclose(result.f, np.sqrt(mean * e2))
    assert not result.sigf.any() and np.isnan(result.shells[0].i_over_sigma)


def test_fifty_thousand_reflections():
    sg, cell, hkl, mean, e2 = wilson_intensities("P 1", (26, 29, 33, 80, 95, 105), 0.88)
    assert len(hkl) > 50000
    data = from_amplitude(sg, cell, hkl[:50000], (mean * e2)[:50000])
    result = normalise(data)
    assert np.corrcoef(result.e**2, e2[:50000])[0, 1] > 0.99
