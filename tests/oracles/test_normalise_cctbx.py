"""Normalisation of measured data against cctbx: E values, anisotropy, Wilson B."""

import gemmi
import numpy as np
import pytest
from cctbx.array_family import flex
from in_cctbx import amplitude_array
from mmtbx.scaling import absolute_scaling

from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source

pytestmark = pytest.mark.shared

# file, column: isotropic and anisotropic, F and I, primitive, centred, rhombohedral and cubic, 0.43 to 2.9 A
SETS = {
    "alamet": ("alamet.mtz", "FOBS"),
    "4axt": ("4axt.mtz", "FOBS"),
    "4xof": ("4xof.mtz", "FP"),
    "5awl": ("5awl.mtz", "FP"),
    "2drm": ("2DRM.mtz", "FP"),
    "1d7m": ("1D7M-cad.mtz", "FP"),
    "1va7": ("1va7.mtz", "FOBS"),
    "5uui": ("5uui.mtz", "FOBS"),
    "2uui": ("2uui_sigmaa.mtz", "F"),
    "3mpn": ("3mpn.mtz", "FOBS"),
    "2xiu": ("2xiu.mtz", "IOBS"),
    "3k0n": ("3k0n.mtz", "IOBS"),
}


def read(folder, name):
    """Amplitudes straight from the columns, by gemmi alone."""
    file, label = SETS[name]
    mtz = gemmi.read_mtz_file(str(folder / "diffraction" / name / file))
    mtz.ensure_asu()
    column = mtz.column_with_label(label)
    hkl = mtz.make_miller_array()
    value = np.array(column, dtype=np.float64)
    sigma = np.array(mtz.columns[column.idx + 1], dtype=np.float64)
    ok = np.isfinite(value) & (sigma > 0) & ~mtz.spacegroup.operations().systematic_absences(hkl)
    ok &= np.isin(np.arange(len(hkl)), np.unique(hkl, axis=0, return_index=True)[1])
    hkl, value, sigma = hkl[ok].astype(np.int32), value[ok], sigma[ok]
    source = Source(file, "MTZ", (label,), "amplitude" if column.type == "F" else "intensity")
    if column.type == "F":
        return Amplitudes(hkl, value, sigma, mtz.cell, mtz.spacegroup, source)
    f = np.sqrt(np.maximum(value, 0))
    return Amplitudes(hkl, f, 0 * f, mtz.cell, mtz.spacegroup, source, intensity=value, sigma_i=sigma)


@pytest.fixture(params=SETS)
def crystal_data(request, shared_data):
    data = read(shared_data, request.param)
    return data, normalise(data)


def test_against_cctbx(crystal_data):
    """Anisotropy and isotropic B of cctbx's maximum-likelihood fit, then E of amplitudes freed of anisotropy.

    cctbx's fit stops at 1.2 A, and its quasi-normalisation knows neither anisotropy nor, before
    ``quasi_normalized_as_normalized``, epsilon.
    """
    data, ours = crystal_data
    array = amplitude_array(data, ours.f, ours.sigf)
    residues = max(1, int(data.cell.volume / len(data.spacegroup.operations()) / 265))
    b = np.array(absolute_scaling.ml_aniso_absolute_scaling(array, n_residues=residues).b_cart)
    isotropic = b[:3].mean()
    b[:3] -= isotropic
    s2_max = 1 / data.d_min**2
    # compared in what the tensors do to amplitudes at the resolution limit
    if data.d_min > 0.9:
        np.testing.assert_allclose(ours.aniso_b * s2_max / 4, b * s2_max / 4, atol=0.12)
    if 1.0 < data.d_min < 2.3:
        assert ours.wilson_b == pytest.approx(isotropic, abs=3.5)

    s = data.hkl @ np.array(data.cell.frac.mat)
    tensor = ours.aniso_b[[0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(3, 3)
    freed = array.array(data=flex.double(ours.f * np.exp(0.25 * np.einsum("ni,ij,nj->n", s, tensor, s))))
    freed.set_observation_type_xray_amplitude()
    freed.setup_binner(auto_binning=True)
    theirs = freed.quasi_normalize_structure_factors().quasi_normalized_as_normalized()
    e = np.array(theirs.data())
    used = ~ours.outlier
    assert np.corrcoef(e[used], ours.e[used])[0, 1] > 0.99
    assert np.mean(ours.e[used] / e[used].clip(1e-3)) == pytest.approx(1, abs=0.1)


def test_mean_e2_is_one_in_every_shell(crystal_data):
    """Shells of our own making; what the mean of a shell is uncertain by is measured in it."""
    data, ours = crystal_data
    used = np.flatnonzero(~ours.outlier)
    used = used[np.argsort(data.d[used])]
    for members in np.array_split(used, max(4, len(used) // 1000)):
        error = ours.e2[members].std() / np.sqrt(len(members))
        assert ours.e2[members].mean() == pytest.approx(1, abs=4 * error)
    assert ours.outlier.sum() <= 3
