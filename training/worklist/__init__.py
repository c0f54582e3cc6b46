"""What a reader sees and says: page, cases, heatmaps, exports, verdicts."""
