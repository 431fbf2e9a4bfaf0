"""What lies in the data directory and outside of it, and what of that a backup cannot take or bring back whole."""
