"""What comes after training: the network as a file for other runtimes."""
