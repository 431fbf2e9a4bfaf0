"""What differs on PolarDB: detection, the two-directory layout, settings."""
