"""Where scans come from: each module reads one official layout."""
