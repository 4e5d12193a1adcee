"""From what a study folder holds to its report: statistics from stored predictions, and the texts people read."""
