"""Post-processing as graphs of their own, one file per task; merged with the network on export."""
