"""What the flows share: settings, tasks, progress, reports, events."""
