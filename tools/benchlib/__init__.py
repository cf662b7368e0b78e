"""What tools/bench is made of: cases (what is measured), others (what a user would pick instead), report."""
