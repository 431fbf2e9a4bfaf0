"""What compaction put elsewhere: `packs` by packs and without a key, `chunks` by chunks; `reading` finds both."""
