"""What phase seeds are worth: true ones, spoilt to measure, and the engine's own."""
