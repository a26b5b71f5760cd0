"""Pages: HTML reports, heat maps and feature maps, and the page of demo.py."""
