"""What a checkout alone needs: proofs of many configs, makers of pages, of toys and of goldens."""
