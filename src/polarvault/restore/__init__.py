"""Use case: lay a backup out so that it starts; plan (pure), write, settings, start."""
