"""Installing the plugins for ccp4i2 and Phenix, and what is generated for them from the table of parameters."""
