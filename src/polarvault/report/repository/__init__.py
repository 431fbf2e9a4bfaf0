"""What the commands about a repository have to say: backups taken, listed, verified, expired, exchanged; the places."""
