"""Do the small files of a backup fit together? Pure but for reading history files; `judge` lists the findings."""
