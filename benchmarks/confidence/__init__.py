"""Are figures of merit and verdicts to be believed? Simulated and measured crystals phased and compared."""
