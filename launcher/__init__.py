"""What runs on the head: study -> plans -> placements -> jobs on Ray -> report. Never trains."""
