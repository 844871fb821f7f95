"""The StreamPETR deployment fork: one graph with a memory in global coordinates."""
