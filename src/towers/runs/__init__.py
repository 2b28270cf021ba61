"""Whole runs, put together from the parts: a run folder, training that resumes, validation."""
