"""What the interface and the wrapper share. Made from ml_phaser's table of parameters: do not edit."""

# word of the command line, kind there, fields
KEYWORDS = (
    ("pattout", "output", "PATTOUT"),
    ("reportout", "output", "REPORTOUT"),
    ("resolution", "resolution", "RESOLUTION_LOW", "RESOLUTION_HIGH"),
    ("starts", "choice", "STARTS"),
    ("seedin", "input", "SEEDIN"),
    ("seedhold", "int", "SEEDHOLD"),
    ("spacegroup", "text", "SPACEGROUP"),
    ("cell", "cell", "CELL"),
    ("trials", "int", "TRIALS"),
    ("timelimit", "float", "TIMELIMIT"),
    ("engine", "choice", "ENGINE"),
    ("hand", "choice", "HAND"),
    ("mapextent", "choice", "MAPEXTENT"),
    ("seed", "int", "SEED"),
    ("freer", "float", "FREER"),
    ("shelxout", "output", "SHELXOUT"),
    ("seedout", "output", "SEEDOUT"),
    ("seedformat", "choice", "SEEDFORMAT"),
    ("seedbins", "int", "SEEDBINS"),
    ("seedfraction", "float", "SEEDFRACTION"),
    ("seedcount", "int", "SEEDCOUNT"),
    ("seedmin", "float", "SEEDMIN"),
    ("then", "choice", "THEN"),
    ("device", "choice", "DEVICE"),
    ("threads", "int", "THREADS"),
)

# title, fields: name, label, whether for experts
GROUPS = (
    (
        "Measured data",
        (
            ("RESOLUTION_LOW", "Resolution range: low limit (A)", False),
            ("RESOLUTION_HIGH", "Resolution range: high limit (A)", False),
            ("SPACEGROUP", "Space group", True),
            ("CELL", "Unit cell", True),
        ),
    ),
    (
        "Starting phases",
        (
            ("STARTS", "Begin with", False),
            ("SEEDIN", "Phase seeds to begin with", True),
            ("SEEDHOLD", "Cycles to hold them", True),
        ),
    ),
    (
        "Phasing",
        (
            ("TRIALS", "Number of starts", True),
            ("TIMELIMIT", "Time for phasing (s)", False),
            ("ENGINE", "Density modification", True),
            ("HAND", "Hand", False),
            ("SEED", "Seed of the random starts", True),
        ),
    ),
    (
        "Output",
        (
            ("PATTOUT", "Patterson map", True),
            ("REPORTOUT", "Report", False),
            ("MAPEXTENT", "Map covers", True),
        ),
    ),
    (
        "The next program",
        (
            ("FREER", "Free-R flags for (%)", False),
            ("SHELXOUT", "Phases for SHELXE", True),
            ("SEEDOUT", "Phase seeds", True),
            ("SEEDFORMAT", "Form of the seeds", True),
            ("SEEDBINS", "Parts of the circle", True),
            ("SEEDFRACTION", "Share of the reflections", True),
            ("SEEDCOUNT", "Number of seeds", True),
            ("SEEDMIN", "Least probability", True),
            ("THEN", "Go on with", False),
        ),
    ),
    (
        "Running",
        (
            ("DEVICE", "Compute on", True),
            ("THREADS", "Processor threads", True),
        ),
    ),
)

# the finest resolution there is, A
FINEST = 0.2
