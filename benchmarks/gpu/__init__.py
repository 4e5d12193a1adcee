"""What only a CUDA GPU can show: tests, speed and memory."""
