"""Objects in the buckets of S3, Google Cloud Storage and Azure, through obstore, which is imported nowhere else."""
