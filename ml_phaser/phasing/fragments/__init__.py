"""Starts from fragments: pieces of peptide placed by their agreement with the measured E^2, judged and completed by the
learned projection. ``road.py`` shows the way."""
