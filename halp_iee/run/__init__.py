"""What one run asks for, and the directory that it leaves behind."""
