"""What lies between the ranks of a job: by which interface they talk, how long they wait, the memory they share."""
