"""Why a run failed: which process failed first, of what kind that is, and what was only a consequence."""
