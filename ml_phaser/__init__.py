"""ml_phaser: electron density and phases from measured X-ray amplitudes."""

__version__ = "0.1.0"
