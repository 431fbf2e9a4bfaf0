"""Write one backup into a repository; start at `backup_writer`."""
