"""ml_phaser in ccp4i2: definition, wrapper, interface, report."""
