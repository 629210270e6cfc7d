"""ml_phaser in ccp4i2."""
