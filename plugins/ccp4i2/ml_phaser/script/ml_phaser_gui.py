"""The task window of the classic release; the Django one draws its own from the definition."""

from __future__ import annotations

from qtgui.CCP4TaskWidget import CTaskWidget

from .ml_phaser_table import GROUPS


class ml_phaser_gui(CTaskWidget):
    """Data on the first page, with the fields that most people want; all others on the second."""

    TASKNAME = "ml_phaser"
    TASKVERSION = 0.1
    TASKMODULE = "expt_phasing"
    TASKTITLE = "Phases from amplitudes alone - ml_phaser"
    SHORTTASKTITLE = "ml_phaser"
    DESCRIPTION = "Density and phases from measured amplitudes alone: no model, no heavy atoms"
    MGDISPLAYFILES = ["FPHIOUT"]  # noqa: RUF012
    WHATNEXT = [  # noqa: RUF012
        ["modelcraft", "$CCP4I2/wrappers/modelcraft/script/experimental.params.xml"],
        "parrot",
        "buccaneer_build_refine_mr",
        "shelxeMR",
        "coot_rebuild",
        "coot1",
    ]

    def drawContents(self) -> None:
        """Draw both pages."""
        self.openFolder(folderFunction="inputData", title="Input Data")
        self._frame("Measured data", ["F_SIGF", "FREERFLAG"])
        self._frame("Phases to start from, if there are any", ["ABCD"])
        self._frame("Piece of structure to place, if there is one", ["XYZIN"])
        self._frame("Sequence, for the next program", ["ASUIN"])
        self._fields(experts=False)
        self.openFolder(folderFunction="controlParameters", title="Advanced Options")
        self._fields(experts=True)

    def _frame(self, title: str, names: list[str]) -> None:
        self.createLine(["subtitle", title])
        self.openSubFrame(frame=[True])
        for name in names:
            self.createLine(["widget", name])
        self.closeSubFrame()

    def _fields(self, experts: bool) -> None:
        for title, group in GROUPS:
            inside = [(name, label) for name, label, expert in group if expert == experts]
            if not inside:
                continue
            self.createLine(["subtitle", title])
            self.openSubFrame(frame=[True])
            for name, label in inside:
                self.createLine(["label", label, "widget", name])
            self.closeSubFrame()
