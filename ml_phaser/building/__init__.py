"""Changing models: geometry restraints, targets against measured amplitudes, and their minimisation."""
