"""What stands between Shoal and a real card: which ones a process sees, whether driver and PyTorch fit them."""
