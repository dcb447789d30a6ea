"""What is shown: summary tables, listings, curves and the page."""
