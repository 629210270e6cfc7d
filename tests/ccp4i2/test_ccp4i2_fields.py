"""The wrapper in the Django release, without running the program: every field changes what it is told."""

import gemmi
import numpy as np
import pytest
from i2_fields import EXAMPLE, check_every_field

from ml_phaser.cli.arguments import options_from, parse_command_line
from ml_phaser.suites.ccp4i2 import fields

pytestmark = pytest.mark.ccp4i2
OBSERVED = {
    1: ("Iplus K SIGIplus M Iminus K SIGIminus M", "F_SIGF_Iplus,F_SIGF_SIGIplus,F_SIGF_Iminus,F_SIGF_SIGIminus"),
    2: ("Fplus G SIGFplus L Fminus G SIGFminus L", "F_SIGF_Fplus,F_SIGF_SIGFplus,F_SIGF_Fminus,F_SIGF_SIGFminus"),
    3: ("I J SIGI Q", "F_SIGF_I,F_SIGF_SIGI"),
    4: ("F F SIGF Q", "F_SIGF_F,F_SIGF_SIGF"),
}
ASU = """<?xml version='1.0' encoding='ASCII'?>
<ccp4:ccp4i2 xmlns:ccp4="http://www.ccp4.ac.uk/ccp4ns"><ccp4i2_header><function>ASUCONTENT</function></ccp4i2_header>
<ccp4i2_body><seqList><CAsuContentSeq><sequence>ACDEFGHIK</sequence><nCopies>1</nCopies>
<polymerType>PROTEIN</polymerType><name>chain</name><description>d</description></CAsuContentSeq></seqList></ccp4i2_body>
</ccp4:ccp4i2>
"""


def small_mtz(path, labels):
    """An MTZ of a few reflections with columns "label type label type ..."."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.set_cell_for_all(gemmi.UnitCell(10, 11, 12, 90, 95, 90))
    mtz.spacegroup = gemmi.SpaceGroup("P 1 21 1")
    mtz.add_dataset("d")
    pieces = labels.split()
    for label, kind in zip(pieces[::2], pieces[1::2], strict=True):
        mtz.add_column(label, kind)
    hkl = gemmi.make_miller_array(mtz.cell, mtz.spacegroup, 3)
    values = np.tile(np.linspace(1, 2, len(hkl))[:, None], len(mtz.columns) - 3)
    mtz.set_data(np.hstack([hkl, values]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


@pytest.fixture
def task(suite, tmp_path):
    """Makes the task with measured data of one content."""
    from ccp4i2.core.tasks import get_plugin_class

    def make(content=4):
        work = tmp_path / f"job{len(list(tmp_path.iterdir()))}"
        work.mkdir()
        made = get_plugin_class("ml_phaser")(workDirectory=str(work))
        made.container.inputData.F_SIGF.setFullPath(str(small_mtz(work / "obs.mtz", OBSERVED[content][0])))
        made.container.inputData.F_SIGF.setContentFlag()
        made.checkOutputData()
        return made

    return make


def command(made):
    assert made.processInputFiles() == made.SUCCEEDED, made.errorReport.report()
    assert made.makeCommandAndScript() == made.SUCCEEDED
    assert not made.commandScript
    folder = str(made.getWorkDirectory())
    return [str(word).replace(folder, "/job") for word in made.commandLine]


def test_every_field_changes_its_option_and_no_other(task, tmp_path):
    def words(field, value):
        made = task()
        if field is not None:
            getattr(made.container.controlParameters, field).set(value)
        return command(made)

    check_every_field(words, tmp_path)


def test_resolution_limits(task):
    def resolution(low, high):
        made = task()
        for name, value in (("RESOLUTION_LOW", low), ("RESOLUTION_HIGH", high)):
            if value is not None:
                getattr(made.container.controlParameters, name).set(value)
        return options_from(parse_command_line(command(made))).resolution

    assert resolution(None, None) is None
    assert resolution(None, 1.5) == (float("inf"), 1.5)
    assert resolution(20, 1.5) == (20, 1.5)
    assert resolution(20, None) == (20, 0.2)


@pytest.mark.parametrize("content", OBSERVED)
def test_data_go_through_as_measured(task, content):
    made = task(content)
    given = options_from(parse_command_line(command(made)))
    assert given.labin == OBSERVED[content][1]
    mtz = gemmi.read_mtz_file(str(made.hklin))
    pieces = OBSERVED[content][0].split()
    types = {c.label: c.type for c in mtz.columns if c.type != "H"}
    assert types == {f"F_SIGF_{label}": kind for label, kind in zip(pieces[::2], pieces[1::2], strict=True)}


@pytest.mark.parametrize(
    ("labels", "labphase"),
    [("HLA A HLB A HLC A HLD A", "HLA=HLA HLB=HLB HLC=HLC HLD=HLD"), ("PHI P FOM W", "PHIB=PHI FOM=FOM")],
)
def test_phases_given(task, tmp_path, labels, labphase):
    made = task()
    path = small_mtz(tmp_path / "phases.mtz", labels)
    made.container.inputData.ABCD.setFullPath(str(path))
    given = options_from(parse_command_line(command(made)))
    assert given.phasein == path and given.labphase == labphase


def test_free_flags_join_the_data(task, tmp_path):
    made = task()
    made.container.inputData.FREERFLAG.setFullPath(str(small_mtz(tmp_path / "free.mtz", "FREER I")))
    command(made)
    assert "FREERFLAG_FREER" in gemmi.read_mtz_file(str(made.hklin)).column_labels()


@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_a_piece_to_place(task, tmp_path, suffix):
    """The user's file as it is, or what was selected of it."""
    structure = gemmi.read_pdb(str(EXAMPLE.with_suffix(".pdb")))
    given = tmp_path / f"given.{suffix}"
    structure.make_mmcif_document().write_file(str(given)) if suffix == "cif" else structure.write_pdb(str(given))
    for selection, atoms in (("", structure[0].count_atom_sites()), ("A/2-4", 22)):
        made = task()
        made.container.inputData.XYZIN.setFullPath(str(given))
        if selection:
            made.container.inputData.XYZIN.selection.text.set(selection)
        words = [w.replace("/job", str(made.getWorkDirectory())) for w in command(made)]
        options = options_from(parse_command_line(words))
        assert (options.xyzin == given) == (not selection) and options.xyzout.name == "XYZOUT.pdb"
        assert gemmi.read_structure(str(options.xyzin))[0].count_atom_sites() == atoms


def test_no_piece_no_word_of_it(task):
    assert options_from(parse_command_line(command(task()))).xyzin is None


def test_the_sequence_goes_to_the_next_program(task, tmp_path):
    made = task()
    (tmp_path / "contents.asu.xml").write_text(ASU)
    made.container.inputData.ASUIN.setFullPath(str(tmp_path / "contents.asu.xml"))
    given = options_from(parse_command_line(command(made)))
    assert given.seqin.name == "sequence.fasta"
    fasta = (tmp_path / made.getWorkDirectory() / "sequence.fasta").read_text()
    assert "ACDEFGHIK" in fasta and fasta.startswith(">")


def test_free_flags_that_were_made_are_split_off(task, tmp_path):
    """hklout as the program writes it with freer."""
    made = task()
    command(made)
    labels = "F F SIGF Q FreeR_flag I FWT F PHWT P PHIB P FOM W HLA A HLB A HLC A HLD A"
    small_mtz(made.hklout, labels)
    made.xmlout.write_text(
        "<ml_phaser><verdict><word>solved</word><probability>0.9</probability></verdict></ml_phaser>"
    )
    assert made.processOutputFiles() == made.SUCCEEDED
    free = made.container.outputData.FREEROUT
    assert gemmi.read_mtz_file(str(free.fullPath)).column_labels() == ["H", "K", "L", "FREER"]


@pytest.mark.parametrize("field", [f for f in fields() if f.low is not None], ids=lambda f: f.id)
def test_values_out_of_range_are_refused(task, field):
    made = task()
    setter = getattr(made.container.controlParameters, field.id)
    try:
        setter.set(field.low - 1)
    except ValueError:
        return
    assert made.validity().maxSeverity() >= 4
