"""The story of one backup on a throw-away server: start, fill, back up, restore, compare."""
