"""mmrotate's detectors that propose regions and look at each of them."""
