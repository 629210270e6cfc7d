"""What the phasing benchmark does to crystals, and that it keeps them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from made_library import peptide_library

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.phasing import crystals, tasks  # noqa: E402


@pytest.fixture(autouse=True)
def coordinates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = peptide_library()
    monkeypatch.setattr(crystals, "library", lambda split: library)
    monkeypatch.setenv("ML_PHASER_CACHE", str(tmp_path))


def dipeptide(**flaws: float) -> crystals.Crystal:
    return crystals.simulated(tasks.Recipe("t", "0", "dipeptide-12", 1, flaws=tuple(flaws.items())))


def test_noise_is_relative_to_the_amplitude() -> None:
    c = dipeptide(noise=0.1)
    ratio = c.data.f / np.abs(c.f)
    assert ratio.std() == pytest.approx(0.1, abs=0.01)
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert np.allclose(dipeptide(noise=0.0).data.f, np.abs(dipeptide(noise=0.0).f))


def test_reflections_go_missing_where_asked() -> None:
    whole = dipeptide(noise=0.0)
    low = dipeptide(low=6.0)
    assert low.data.d.max() <= 6.0
    assert len(low.data) == (whole.data.d <= 6.0).sum()
    part = dipeptide(completeness=0.7)
    assert len(part.data) / len(whole.data) == pytest.approx(0.7, abs=0.05)


def test_solvent_fills_what_the_molecule_leaves() -> None:
    dry, wet = dipeptide(noise=0.0), dipeptide(solvent=0.35)
    change = np.abs(wet.f - dry.f)
    assert np.array_equal(wet.data.hkl, dry.data.hkl)
    assert change[dry.data.d > 6].mean() > 20 * change[dry.data.d < 2].mean()
    # Babinet: at low resolution the solvent takes contrast away.
    lowest = dry.data.d > 8
    assert np.abs(wet.f[lowest]).mean() < 0.7 * np.abs(dry.f[lowest]).mean()


@pytest.mark.parametrize("family", ["dialanine-1b", "boxed"])
def test_a_cached_crystal_is_the_made_one(family: str, tmp_path: Path) -> None:
    recipe = tasks.Recipe("t", "0", family, 2)
    made, again = crystals.get(recipe), crystals.get(recipe)
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    fresh = crystals.simulated(recipe)
    for c in (made, again):
        assert np.array_equal(c.f, fresh.f)
        assert np.array_equal(c.data.hkl, fresh.data.hkl)
        assert np.array_equal(c.data.f, fresh.data.f)
        assert c.data.cell.parameters == pytest.approx(fresh.data.cell.parameters)
        assert c.facts == fresh.facts
    other = crystals.get(tasks.Recipe("t", "0", family, 3))
    assert other.facts != made.facts
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_the_truth_belongs_to_the_data() -> None:
    c = dipeptide()
    assert np.corrcoef(c.data.f, np.abs(c.f))[0, 1] > 0.999  # no noise: the amplitudes are those of the truth
    box = crystals.simulated(tasks.Recipe("t", "0", "boxed", 2))
    assert box.facts["volume"] == pytest.approx(box.data.cell.volume)
    assert np.allclose(box.data.f, np.abs(box.f))
