"""The benchmark of starts from pieces: its crystals, its fit, its report."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from benchmarks import fragments as bench
from benchmarks.fragments import Case, calibration, cases, evidence, fit, of_random_atoms


def test_some_of_each_kind_come_early_and_none_twice() -> None:
    every = cases(("measured", "peptide", "atoms"), 16, 0)
    keys = [(c.kind, c.name) for c in every]
    assert len(set(keys)) == len(keys) and {c.kind for c in every[:8]} == {"measured", "peptide", "atoms"}
    assert [c.name for c in every if c.kind == "measured"] == [name for name, _ in bench.MEASURED]
    pairs = {(c.group, c.d_min) for c in every if c.kind == "peptide"}
    assert pairs == set(itertools.product(bench.GROUPS, bench.D_MIN))
    settings = [dict(c.recipe.settings) for c in every if c.recipe is not None]
    assert {s["completeness"] for s in settings} == {bench.COMPLETENESS} and {s["noise"] for s in settings} == {0.05}
    for c in (c for c in every if c.recipe is not None):
        assert dict(c.recipe.settings)["atoms"] == c.asu * bench.GROUPS[c.group]
    assert cases(("atoms",), 16, 0) == [c for c in every if c.kind == "atoms"]


@pytest.mark.parametrize("group", sorted(bench.GROUPS))
def test_random_atoms_have_the_symmetry_and_the_errors(group: str) -> None:
    """Volume, errors and symmetry are those promised: centric phases are two values pi apart."""
    crystal = of_random_atoms(Case("atoms", "0", None, group, 1.6, 30, 3))
    data = crystal.data
    volume = data.cell.volume / (crystal.facts["atoms"])
    assert volume == pytest.approx(bench.VOLUME, rel=1e-6) and crystal.facts["atoms"] == 30 * bench.GROUPS[group]
    assert len(data.spacegroup.operations()) == bench.GROUPS[group] and data.d_min > 1.6
    assert np.array_equal(data.f, of_random_atoms(Case("atoms", "0", None, group, 1.6, 30, 3)).data.f)
    ratio = data.f / np.abs(crystal.f)
    assert np.std(ratio) == pytest.approx(bench.NOISE, rel=0.25) and np.mean(ratio) == pytest.approx(1, abs=0.01)
    absent = np.asarray(data.spacegroup.operations().systematic_absences(data.hkl), dtype=bool)
    assert not absent.any()
    assert np.allclose(np.sin(2 * np.angle(crystal.f[data.centric])), 0, atol=1e-5)


def rows_of(seed: int, crystals: int = 30) -> list[dict]:
    """Rows whose solutions are right with a probability logistic in merit, bias -10 and slope 30."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(crystals):
        merit = rng.uniform(0.1, 0.6, 4)
        right = rng.random(4) < 1 / (1 + np.exp(10 - 30 * merit))
        solutions = [
            {"cc": 0.8 if r else 0.2, "merit": m, "score": m, "judged": m, "lead": 0.0, "chosen": k == 0}
            for k, (m, r) in enumerate(zip(merit, right, strict=True))
        ]
        rows.append({
            "kind": "atoms" if i % 2 else "peptide", "name": str(i), "starts": "fragments", "group": "P1", "d": 1.6,
            "case_d_min": 1.6, "asu": 30, "room": 30, "cc": solutions[0]["cc"], "best_cc": 0.8, "phase_error": 50.0,
            "chance": 0.1, "probability": 0.5, "verdict": "uncertain", "seconds": 10.0, "solutions": solutions,
        })  # fmt: skip
    return rows


def test_the_fit_finds_what_made_the_rows() -> None:
    merit, right, weight, crystal = evidence(rows_of(0, 400))
    assert len(set(crystal)) == 400 and weight.sum() == pytest.approx(400)
    bias, slope = fit(merit, right, weight)
    assert slope == pytest.approx(30, rel=0.2) and -bias / slope == pytest.approx(1 / 3, abs=0.02)
    said = " ".join(calibration(rows_of(1)))
    assert "120 solutions" in said and "of 30 crystals" in said
    assert calibration([{**r, "solutions": r["solutions"][:1] * 2} for r in rows_of(0, 1)]) == []


def test_the_report_counts_solved_and_false(tmp_path) -> None:
    rows = rows_of(2, 6)
    rows[1] |= {"verdict": "solved", "cc": 0.2}
    rows.append({"kind": "peptide", "name": "x", "starts": "random", "error": "cannot be packed"})
    facts = {"settings": {"seconds": 5, "seed": 0}, "version": "1", "weights": {"sha256": "0" * 64},
             "machine": {"processor": "any"}}  # fmt: skip
    bench.write(tmp_path / "f.json", rows, facts)
    assert json.loads((tmp_path / "f.json").read_text())["record"] == facts
    text = (tmp_path / "f.md").read_text()
    (line,) = [x for x in text.splitlines() if x.startswith("| atoms | all |")]
    solved = sum(r["cc"] >= 0.7 for r in rows[1:6:2])
    assert f"{solved}/3" in line and "1 / 2 / 0" in line and line.endswith("| 1 |")
    assert "peptide x, random: cannot be packed" in text and "| atoms 3 | P1 |" in text
