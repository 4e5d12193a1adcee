"""`shoal doctor`: what is wrong with this machine, or with each PC of a cluster and between them, and the mend."""
