"""The memory a job will need, found by running its real step on tensors without memory."""
