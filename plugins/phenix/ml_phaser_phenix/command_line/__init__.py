"""Commands: libtbx makes a dispatcher of every other file here."""
