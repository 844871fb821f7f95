"""Post-processing as separate graphs, one file per task; merged with the network on export."""
