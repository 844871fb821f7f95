"""The StreamPETR deployment fork."""
