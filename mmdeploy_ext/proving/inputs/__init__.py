"""What a proof runs on."""
