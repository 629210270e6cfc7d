"""The report's pictures: geometry of sections against analytic maps, SVG that suits a page."""

import re
import xml.etree.ElementTree as ET

import gemmi
import numpy as np
import pytest
from sample_outcome import amplitudes, options, outcome, structure_factors

from ml_phaser.crystal.maps import density, distribution, symmetric_shape
from ml_phaser.crystal.patterson import harker_sections, patterson_map
from ml_phaser.outcome import Promise, ShellRow, Trial
from ml_phaser.report import pictures
from ml_phaser.report.record import run_record

OBLIQUE = (10.0, 8.0, 6.0, 90.0, 90.0, 120.0)


def facts(**more):
    return run_record(outcome(**more), options())


def blob(shape, centre, width=0.1):
    """A periodic Gaussian-like peak at a fractional position."""
    axes = np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij")
    return np.exp(sum(np.cos(2 * np.pi * (x - c)) - 1 for x, c in zip(axes, centre, strict=True)) / width)


# ------------------------------------------------------------------------------------------- sections


@pytest.mark.parametrize("centre", [(0.25, 0.5), (0.7, 0.1)])
def test_a_peak_is_drawn_where_it_is_in_an_oblique_cell(centre):
    s = pictures.raster(blob((40, 32), centre, 0.01), (0, 1), OBLIQUE)
    row, column = np.unravel_index(np.nanargmax(s.values), s.values.shape)
    left, right, bottom, top = s.extent
    x = left + (column + 0.5) * (right - left) / s.values.shape[1]
    y = bottom + (row + 0.5) * (top - bottom) / s.values.shape[0]
    wanted = gemmi.UnitCell(*OBLIQUE).orthogonalize(gemmi.Fractional(*centre, 0))
    assert (x, y) == pytest.approx((wanted.x, wanted.y), abs=0.08)


def test_proportions_and_emptiness_outside_the_cell():
    s = pictures.raster(np.ones((8, 8)), (0, 1), OBLIQUE)
    left, right, _, top = s.extent
    assert (left, right) == pytest.approx((-4, 10)) and top == pytest.approx(8 * np.sin(np.pi / 3))
    inside = np.isfinite(s.values).mean()
    assert inside == pytest.approx(10 * top / ((right - left) * top), abs=0.02)
    assert np.allclose(s.values[np.isfinite(s.values)], 1)


def test_the_longer_axis_runs_across():
    s = pictures.raster(blob((16, 16), (0.25, 0.5)), (2, 0), OBLIQUE)
    assert (s.across, s.up) == (0, 2) and s.lengths == (10, 6) and s.angle == 90


def test_planes_are_interpolated_and_periodic():
    rho = np.arange(4.0)[:, None, None] * np.ones((4, 2, 2))
    assert [pictures.plane_at(rho, 0, x)[0, 0] for x in (0, 0.125, 0.75, 1.0)] == [0, 0.5, 3, 0]
    assert pictures.plane_at(rho, 0, 0.875)[0, 0] == 1.5


def test_density_section_goes_through_the_highest_peak():
    rho = blob((20, 24, 30), (0.35, 0.5, 0.8)) - 0.1
    section, slab = pictures.draw(facts(trials=(), shells=(), wilson=None), rho)[:2]
    assert section.caption.startswith("Section a = 0.35, through the highest peak")
    assert "4 A around" in slab.caption


def test_sign_decides_the_colour_and_height_the_opacity():
    rgba = pictures.coloured(np.array([[-5.0, 0.0, 2.0, 9.0, np.nan]]))
    assert (rgba[0, 0, :3] == pictures.NEGATIVE).all() and (rgba[0, 3, :3] == pictures.POSITIVE).all()
    assert rgba[0, 1, 3] == rgba[0, 4, 3] == 0 < rgba[0, 2, 3] < rgba[0, 3, 3]


# --------------------------------------------------------------------------------------------- Patterson


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ("P 1", ()), ("P -1", ()), ("P 1 21 1", ((1, 0.5),)), ("P 1 2 1", ((1, 0.0),)), ("P 1 21/c 1", ((1, 0.5),)),
        ("P 21 21 21", ((0, 0.5), (1, 0.5), (2, 0.5))), ("P 21 21 2", ((0, 0.5), (1, 0.5), (2, 0.0))),
        ("P 1 c 1", ()), ("P 31", ((2, 1 / 3),)), ("P 41", ((2, 0.25), (2, 0.5))), ("C 1 2 1", ((1, 0.0), (1, 0.5))),
        ("P 21 3", ((2, 0.5),)),
    ],
)  # fmt: skip
def test_harker_sections_of_known_groups(group, wanted):
    found = harker_sections(gemmi.SpaceGroup(group))
    assert [axis for axis, _ in found] == [axis for axis, _ in wanted]
    assert [x for _, x in found] == pytest.approx([x for _, x in wanted], abs=1e-6)


@pytest.mark.parametrize("group", ["P 21 21 21", "P 1 21 1", "P 41 21 2", "P 61"])
def test_vectors_between_mates_lie_on_the_harker_sections(group):
    """By the operators applied to a point, not by their matrices."""
    spacegroup, x = gemmi.SpaceGroup(group), [0.13, 0.29, 0.37]
    vectors = [np.subtract(op.apply_to_xyz(x), x) % 1 for op in spacegroup.operations()]
    sections = harker_sections(spacegroup)
    assert sections
    for axis, fraction in sections:
        assert any(min(abs(v[axis] - fraction), abs(1 - v[axis] - fraction)) < 1e-6 for v in vectors)


def test_groups_without_harker_sections_show_the_highest_peak_off_the_origin():
    patterson = (
        blob((20, 20, 20), (0.0, 0.0, 0.0)) * 5
        + blob((20, 20, 20), (0.3, 0.5, 0.5))
        + blob((20, 20, 20), (0.7, 0.5, 0.5))
    )
    (picture,) = pictures.patterson_pictures(patterson, (9, 10, 11, 90, 90, 90), "P -1")
    assert "u = 0.30" in picture.caption or "u = 0.70" in picture.caption


# ------------------------------------------------------------------------------------------------ all of it


@pytest.fixture(scope="module")
def drawn():
    data = amplitudes()
    f = structure_factors(data.hkl)
    rho = density(data.hkl, f, data.cell, data.spacegroup, symmetric_shape(data.cell, data.spacegroup, 1.2, 0.4))
    result = run_record(outcome(data, held=40, density=distribution(rho)), options())
    return pictures.draw(result, rho, patterson_map(data, data.f**2, origin_removed=True))


def test_how_figures_of_merit_were_calibrated_is_drawn_where_it_is_known():
    bins = (Promise(100, 0.2, 0.3), Promise(300, 0.8, 0.78))
    known, unknown = (pictures.draw(facts(calibration=found)) for found in (bins, ()))
    assert len(known) == len(unknown) + 1
    (one,) = [p for p in known if "reliability" in p.svg]
    assert "400 reflections" in one.caption and "mean difference 0.040" in one.caption and "0.04" in one.alt


def test_every_picture_is_there_and_says_what_it_shows(drawn):
    groups = [p.group for p in drawn]
    assert groups == ["density"] * 2 + ["patterson"] * 3 + ["starts"] + ["statistics"] * 3
    assert all(len(p.alt) > 20 and p.caption for p in drawn)
    assert "Harker section u = 0.5" in drawn[2].caption and "40 reflections" in drawn[5].caption


def test_svg_is_well_formed_small_and_takes_its_colours_from_the_page(drawn):
    seen = set()
    for picture in drawn:
        root = ET.fromstring(picture.svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))
        assert root.get("role") == "img" and root.get("aria-label") == picture.alt and root.get("viewBox")
        own = {e.get("id") for e in root.iter() if e.get("id")}
        assert not own & seen
        seen |= own
        for name in re.findall(r'(?:href="#|url\(#)([^")]+)', picture.svg):
            assert name in own
        assert "var(--ink)" in picture.svg and not re.search("#0[1-4]0[0-4]0[0-8]", picture.svg)
        assert "var(--font)" in picture.svg and "DejaVu" not in picture.svg and "<metadata" not in picture.svg
        assert len(picture.svg) < 250_000
    assert sum(len(p.svg) for p in drawn) < 1_200_000


def test_the_same_record_gives_the_same_pictures():
    once, again = (pictures.draw(facts(held=30)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"trials": ()}, "starts"), ({"shells": ()}, "resolution"), ({"wilson": None}, "wilson"),
        ({"trials": tuple(Trial(i, "RRR", 0, 5, 1.0, float("nan"), 0.5, 0.5) for i in range(3))}, "starts"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_not_drawn(missing, gone):
    rho = blob((8, 8, 8), (0.5, 0.5, 0.5))
    names = [re.search('id="([a-z]+)-', p.svg)[1] for p in pictures.draw(facts(density=distribution(rho), **missing))]
    assert names == [n for n in ("starts", "resolution", "wilson", "histogram") if n != gone]


def test_a_flat_map_is_not_drawn():
    assert distribution(np.ones((4, 4, 4))) is None
    assert not [p for p in pictures.draw(facts(), np.ones((4, 4, 4))) if p.group == "density"]


def test_shells_without_held_out_reflections():
    nan = float("nan")
    drawn = pictures.draw(facts(shells=(ShellRow(8, 1.2, 50, 0.5, nan),), trials=(), wilson=None))
    assert len(drawn) == 1 and "0.50" in drawn[0].alt


def test_thousands_of_starts_stay_small():
    trials = tuple(Trial(i, f"method {i % 3}", 0, 50, 1.0, 0.1 * np.sin(i), 0.5, 0.5) for i in range(5000))
    (starts,) = [p for p in pictures.draw(facts(trials=trials, held=100)) if p.group == "starts"]
    assert len(starts.svg) < 300_000


def test_distribution_of_known_values():
    found = distribution(np.array([0.0, 0, 0, 4]).reshape(4, 1, 1))
    assert found.sigma == pytest.approx(np.sqrt(3)) and found.skewness == pytest.approx((27 - 3) / 4 / 3**1.5)
    assert sum(found.histogram["counts"]) == 4 and len(found.histogram["edges"]) == len(found.histogram["counts"]) + 1
    assert found.histogram["edges"][0] <= -1 / np.sqrt(3) and found.histogram["edges"][-1] >= np.sqrt(3)
