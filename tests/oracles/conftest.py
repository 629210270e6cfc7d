"""Comparisons with other programs' results; those with cctbx are left out where it is not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("cctbx") else ["*cctbx*"]
