"""program.xml of imaginary runs, written as the program writes it."""

from ml_phaser.report.program_xml import to_xml

SHELLS = [
    {"d_max": 10.0, "d_min": 2.0, "n": 100, "fom": 0.9, "cc_free": 0.8},
    {"d_max": 2.0, "d_min": 1.0, "n": 300, "fom": 0.5, "cc_free": None},
]
TRIALS = [
    {"index": 0, "method": "RRR", "cycles": 80, "score": 0.21, "r_work": 0.6, "symmetry": 0.1},
    {"index": 1, "method": "charge flipping", "cycles": 60, "score": 0.74, "r_work": 0.3, "symmetry": 0.9},
    {"index": 2, "method": "RRR", "cycles": 5, "score": None, "r_work": None, "symmetry": None},
]


def running():
    """A run under way."""
    return to_xml({"status": "running", "stage": "phase", "progress": 0.42, "trials": TRIALS}).decode()


def failed():
    """A run that ended with an error."""
    return to_xml({"status": "failed", "error": {"message": "a.mtz: no <data>. Try: b.mtz"}, "trials": TRIALS}).decode()


THEN = {"program": "modelcraft", "command": "modelcraft xray", "exit_code": 0, "seconds": 9.0, "log": "/j/m.log"}
THEN |= {"summary": "8 residues, R-work 0.210"}
THEN_FAILED = THEN | {"program": "shelxe", "exit_code": 3, "summary": "no trace of a chain was saved"}


def finished(word="solved", probability=0.97, then=None):
    """A finished run with all there can be."""
    return to_xml({
        "status": "finished", "best_trial": 1, "spacegroup": "P 1", "d_min": 1.0, "d_max": 10.0, "n_reflections": 400,
        "choices": ["Columns F, SIGF & more are used."], "weights": {"name": "projector"},
        "verdict": {"word": word, "probability": probability, "reason": "correlation 0.74 on 21 reflections"},
        "hand": "cannot be told from these data", "shells": SHELLS, "trials": TRIALS,
        "density": {"sigma": 0.3, "skewness": 4.2, "histogram": {"edges": [-1.0, 0.0, 1.0], "counts": [70, 30]}},
        "fragments": {"label": "3 strands", "atoms": 75, "fit": 0.314, "judged": 0.456}, "then": then,
        "next": [
            {"program": "ModelCraft", "purpose": "model building", "command": "modelcraft xray --data 'a b.mtz'",
             "needs": ["a sequence: seqin FILE"], "installed": False},
        ],
    }).decode()  # fmt: skip


# what each report must say, and must not
SAID = {
    "running": (running(), "Running", ["ml_phaser is phasing.", "Starts tried: 3", "0.740"], ["Solved"]),
    "begun": (None, "Running", ["ml_phaser has begun."], ["failed", "No phases"]),
    "failed": (failed(), "Failed", ["the job did not finish", "a.mtz: no <data>. Try: b.mtz"], ["Solved", "Evidence"]),
    "died": (None, "Failed", ["the job did not finish", "left no message"], ["Solved"]),
    "solved": (
        finished(), "Finished",
        ["Solved. The map is right with probability 0.97", "Evidence: correlation 0.74", "Mean figure of merit 0.600",
         "CC on held-out reflections 0.740", "Skewness 4.20", "ModelCraft (not installed here): model building",
         "Still needed: a sequence: seqin FILE", "modelcraft xray --data 'a b.mtz'", "Columns F, SIGF & more are used.",
         "Network: projector.", "Begun with pieces placed: 3 strands, 75 atoms.", "measured E^2 0.31,",
         "kept out 0.46."],
        ["Not solved", "Allow it more time", "failed", "modelcraft:"],
    ),
    "went on": (finished(then=THEN), "Finished", ["modelcraft: 8 residues, R-work 0.210"], ["failed"]),
    "next failed": (
        finished(then=THEN_FAILED), "Finished",
        ["Solved.", "The phases are there; the next program failed: shelxe, exit status 3. no trace of a chain was",
         "Its log: /j/m.log"],
        ["No phases", "did not finish"],
    ),
    "uncertain": (finished("uncertain", 0.5), "Finished", ["Uncertain.", "0.50"], ["Not solved"]),
    "not solved": (
        finished("not solved", 0.02), "Finished", ["Not solved.", "Do not build into it", "Allow it more time"], []
    ),
}  # fmt: skip
