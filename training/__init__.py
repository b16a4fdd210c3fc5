"""What train.py and test.py are made of."""
