"""The runtime of exported Sparse4D models: instance bank, boxes, and the files as a stepper. No torch."""
