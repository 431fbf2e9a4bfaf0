"""What is looked out for while a backup is taken: the server's role and load, its checkpoint, absences, torn pages."""
