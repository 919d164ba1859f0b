"""The E- and M-steps of the mixtures, in memory, over a mesh and block by block."""
