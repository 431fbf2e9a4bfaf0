"""Options that several commands take, and what one of them has so many of that they fill a file."""
