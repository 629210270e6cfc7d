"""Solvent masks, R factors and weighted maps against cctbx and mmtbx."""

import csv

import pytest

pytest.importorskip("mmtbx.f_model")
import cctbx.array_family.flex as flex
import gemmi
import iotbx.pdb
import mmtbx.f_model
import numpy as np
from in_cctbx import amplitude_array, miller_set
from mmtbx.masks import bulk_solvent

from ml_phaser.exchange.model import read_model
from ml_phaser.exchange.read import read_amplitudes
from ml_phaser.structure_factors.scaling import f_model, fit_scales, free_set, r_factors
from ml_phaser.structure_factors.sigmaa import figure_of_merit, fit_errors, map_coefficients
from ml_phaser.structure_factors.solvent import exact_mask, mask_factors

GROUPS = [
    ("P 1", (21, 23, 25, 82, 97, 104)),
    ("C 1 2 1", (40, 22, 26, 90, 112, 90)),
    ("P 32 2 1", (34, 34, 30, 90, 90, 120)),
]


def random_model(name, cell, n=60):
    """Atoms anywhere in a corner of the cell, hydrogen among them."""
    rng = np.random.default_rng(5)
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = gemmi.UnitCell(*cell), name
    residue = gemmi.Residue()
    residue.name, residue.seqid = "LIG", gemmi.SeqId("1")
    for i in range(n):
        atom = gemmi.Atom()
        atom.name, atom.element = f"A{i}", gemmi.Element("CNOSPHZ"[i % 7].replace("Z", "Zn"))
        atom.pos, atom.b_iso = gemmi.Position(*rng.uniform(3, 14, 3)), 20
        residue.add_atom(atom)
    chain, model = gemmi.Chain("A"), gemmi.Model(1)
    chain.add_residue(residue)
    model.add_chain(chain)
    st.add_model(model)
    return st


def xray_structure(st):
    lines = flex.std_string(st.make_pdb_string().splitlines())
    return iotbx.pdb.input(source_info=None, lines=lines).xray_structure_simple()


@pytest.mark.parametrize(("name", "cell"), GROUPS)
def test_mask_is_that_of_cctbx(name, cell):
    st = random_model(name, cell)
    ours = exact_mask(st, spacing=0.5, probe=1.1, shrink=0.9)
    theirs = bulk_solvent(
        xray_structure=xray_structure(st).expand_to_p1(),  # all atoms of the cell: it knows no symmetry
        ignore_zero_occupancy_atoms=True,
        solvent_radius=1.1,
        shrink_truncation_radius=0.9,
        gridding_n_real=ours.shape,
    )
    mask = np.array(theirs.data).reshape(ours.shape) > 0
    assert np.mean(mask != (ours > 0.5)) < 0.005 and 0.2 < mask.mean() < 0.9
    hkl = gemmi.make_miller_array(st.cell, st.find_spacegroup(), 2.5)
    expected = theirs.structure_factors(miller_set(st.cell, gemmi.SpaceGroup("P 1"), hkl), zero_high=False)
    f = mask_factors(ours, hkl, st.cell).numpy()
    correlation = np.corrcoef(np.abs(f), np.abs(np.array(expected.data())))[0, 1]
    assert correlation > 0.999
    assert np.vdot(f, np.array(expected.data())).real / np.vdot(f, f).real == pytest.approx(1, abs=0.01)


@pytest.fixture(scope="module", params=["1dur", "1nsf"])
def measured(request, shared_data):
    """A measured set, F_calc and flags by cctbx's means, and mmtbx's own manager after scaling."""
    folder = shared_data / "diffraction"
    with (folder / "README.csv").open(newline="") as stream:
        row = next(r for r in csv.DictReader(stream) if r["name"] == request.param)
    data = read_amplitudes(folder / request.param / row["refl_file"])
    st = read_model(folder / request.param / row["model_file"]).structure
    free, _ = free_set(data.free)
    theirs = mmtbx.f_model.manager(
        f_obs=amplitude_array(data, data.f, data.sigf),
        r_free_flags=miller_set(data.cell, data.spacegroup, data.hkl).array(data=flex.bool(free)),
        xray_structure=xray_structure(st),
    )
    theirs.update_all_scales(log=None, remove_outliers=False)
    f_calc = np.array(theirs.f_calc().data())
    f_mask = mask_factors(exact_mask(st), data.hkl, data.cell).numpy()
    scales = fit_scales(data.f, f_calc, f_mask, data.hkl, data.cell, data.spacegroup, free)
    return data, free, f_model(f_calc, f_mask, *scales.at(data.hkl)), scales, theirs


@pytest.mark.shared
def test_r_factors_are_near_those_of_mmtbx(measured):
    data, free, model, _, theirs = measured
    r = r_factors(data.f, model, data.d, free)
    assert r.work == pytest.approx(theirs.r_work(), abs=0.01)
    assert r.free == pytest.approx(theirs.r_free(), abs=0.015)
    solvent = np.interp(15, data.d[np.argsort(data.d)], np.array(theirs.k_masks()[0])[np.argsort(data.d)])
    assert 0.1 < solvent < 0.7, "both find solvent"


@pytest.mark.shared
def test_maps_are_near_those_of_mmtbx(measured):
    data, free, model, scales, theirs = measured
    s2 = 1 / data.d**2
    alpha, beta = fit_errors(data.f, model, s2, data.epsilon, data.centric, free).at(s2, data.epsilon)
    maps = map_coefficients(data.f, model, alpha, beta, data.centric)
    m = figure_of_merit(data.f, model, alpha, beta, data.centric)
    assert m.mean() == pytest.approx(np.mean(np.array(theirs.figures_of_merit())), abs=0.03)
    total, _ = scales.at(data.hkl)
    for ours, kind, least in ((maps.best, "2mFo-DFc", 0.99), (maps.difference, "mFo-DFc", 0.92)):
        other = theirs.electron_density_map().map_coefficients(map_type=kind)
        own = other.array(data=flex.complex_double(ours / total))  # theirs are on the absolute scale
        assert other.map_correlation(own) > least
