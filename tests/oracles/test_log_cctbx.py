"""The tables of the log and the phased MTZ, read by cctbx."""

import io
import math

import iotbx.mtz
import numpy as np
import pytest
from iotbx.data_plots import import_ccp4i_logfile
from sample_outcome import amplitudes, options, outcome, phases

from ml_phaser.exchange.write import write_mtz
from ml_phaser.report import log


def test_tables_of_a_log():
    result = outcome()
    tables = {t.title: t for t in import_ccp4i_logfile(log_lines=log.report(result, options()).splitlines())}
    assert set(tables) == {"Data by resolution", "FOM by resolution", "Held-out score of trials"}
    fom = tables["FOM by resolution"]
    assert fom.plot_type == "GRAPH" and fom.n_rows == 2 and fom.n_graphs == 3
    column = dict(zip(fom.column_labels, fom.data, strict=True))
    assert column["FOM"] == pytest.approx([0.91, 0.75])
    assert column["N refl"] == [200, 600]
    assert column["CC free"][0] == pytest.approx(0.88)
    assert column["CC free"][1] is None or math.isnan(column["CC free"][1])
    for table in tables.values():
        assert all(0 <= i < table.n_cols for which in table.graph_columns for i in which)
        assert all(len(c) == table.n_rows for c in table.data)


def test_phases_read_by_iotbx(tmp_path):
    data = amplitudes()
    result = phases(data)
    write_mtz(tmp_path / "pred.mtz", data, result)
    mtz = iotbx.mtz.object(str(tmp_path / "pred.mtz"))
    mtz.show_summary(out=io.StringIO())
    assert mtz.space_group_info().type().number() == 19
    arrays = {tuple(a.info().labels): a for a in mtz.as_miller_arrays()}
    coefficients = arrays["FWT", "PHWT"]
    hl = arrays["HLA", "HLB", "HLC", "HLD"]
    assert ("F", "SIGF") in arrays and hl.is_hendrickson_lattman_array()
    true = {
        tuple(h): f for h, f in zip(data.hkl.tolist(), data.f * np.exp(1j * result.phase) * result.fom, strict=True)
    }
    got = dict(zip(coefficients.indices(), coefficients.data(), strict=True))
    assert set(got) == set(true)
    assert max(abs(got[h] - true[h]) for h in true) < 1e-3 * max(map(abs, true.values()))
    # cctbx integrates the coefficients itself: <cos>, <sin> of each distribution
    fom = abs(hl.phase_integrals()).data().as_numpy_array()
    by_hkl = dict(zip(hl.indices(), fom, strict=True))
    assert [by_hkl[tuple(h)] for h in data.hkl.tolist()] == pytest.approx(list(result.fom), abs=5e-3)
