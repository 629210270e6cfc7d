"""ml_phaser in Phenix: phases and electron density from measured amplitudes alone.

This package runs in Phenix's Python and starts the program ml_phaser, which lives in an environment of its own.
"""
