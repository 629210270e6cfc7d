"""Starts from heavy atoms: their sites from the Patterson function of the native data, all else by density
modification.

Sulphur is heavy enough where single atoms show. docs/decisions/0021-heavy-atoms.md says why it is done like this.
"""
