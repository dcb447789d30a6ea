"""What a sweep asks for, tried and counted before anything is spent."""
