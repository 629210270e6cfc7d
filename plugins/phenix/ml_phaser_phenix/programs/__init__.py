"""Programs without an interface, as Phenix's command line and its graphical interface run them."""
