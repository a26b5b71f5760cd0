"""What is made to be looked at: reports, heat maps, the page of demo.py."""
