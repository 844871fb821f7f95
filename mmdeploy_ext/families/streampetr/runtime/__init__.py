"""StreamPETR without torch: frames, memory and boxes."""
