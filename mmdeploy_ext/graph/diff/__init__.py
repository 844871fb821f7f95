"""Two graphs side by side: which nodes belong together, and what differs. Numbers: `proving/difference`."""
